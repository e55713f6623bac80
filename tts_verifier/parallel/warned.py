"""The warnings of workers, which the coordinator shows: nobody may see a worker's own output."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from tts_verifier.errors import RunWarning

_MOST_OF_A_SHARD: Final = 20
_MOST_TEXTS: Final = 100


@contextmanager
def noted_warnings() -> Iterator[dict[str, None]]:
    """Yields the texts of the `RunWarning`s of a block, each once.

    They are shown only where the block raises, for then nobody hands them on.

    As `warnings.catch_warnings`, which it uses, this is for one thread of a process.
    """
    texts: dict[str, None] = {}
    with warnings.catch_warnings():
        show_usually = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *place: object) -> None:
            if not issubclass(category, RunWarning):
                show_usually(message, category, *place)  # type: ignore[arg-type]
            elif len(texts) < _MOST_OF_A_SHARD:
                texts[str(message)] = None

        warnings.showwarning = note  # type: ignore[assignment]
        warnings.simplefilter("always", RunWarning)
        try:
            yield texts
        except BaseException:
            for text in texts:
                show_usually(RunWarning(text), RunWarning, __file__, 0)
            raise


class ShownWarnings:
    """Shows the warnings of all workers, each once."""

    def __init__(self) -> None:
        self._texts: set[str] = set()

    def show(self, texts: Iterable[str]) -> None:
        """Warns of what is new, as far as there is not too much of it."""
        for text in texts:
            if text in self._texts or len(self._texts) > _MOST_TEXTS:
                continue
            self._texts.add(text)
            if len(self._texts) > _MOST_TEXTS:
                text = f"Workers warn of more than {_MOST_TEXTS} things; the others are not shown."
            warnings.warn(text, RunWarning, stacklevel=2)
