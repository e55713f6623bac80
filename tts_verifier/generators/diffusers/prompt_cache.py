"""Every text is encoded once, and alone, however many candidates are drawn for it.

While a pipeline is called its `encode_prompt` is answered from what was encoded before, a
prompt (with its negative prompt) at a time; the rows of a batch are put together from these.
So a prompt's encoding does not depend on its neighbours in the batch either. Families whose
encodings cannot be put together, because their length is that of the longest, encode a mixed
batch themselves.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tts_verifier.generators.diffusers.patched import replaced

_MOST: Final = 2**29
"""Bytes that are kept: some hundred texts of the largest encoders, all of small ones."""


class _Ragged(Exception):
    """Rows that do not fit together."""


class Texts:
    """What was encoded so far, for one generator; a pipeline's weights must not change."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0

    @contextmanager
    def encoded_once(self, pipe: Any) -> Iterator[None]:
        """Answers the pipeline's own encoding of prompts, for one call."""
        own = getattr(pipe, "encode_prompt", None)
        signature = inspect.signature(own) if own else inspect.Signature()
        kinds = {parameter.kind: name for name, parameter in signature.parameters.items()}
        # Arguments of a user's own method that have no names cannot be told apart.
        if own is None or inspect.Parameter.VAR_POSITIONAL in kinds:
            yield
            return
        more = kinds.get(inspect.Parameter.VAR_KEYWORD, "")

        def encode(*args: Any, **kwargs: Any) -> Any:
            told = signature.bind(*args, **kwargs).arguments
            told = {**told.pop(more, {}), **told}
            return self._answer(own, told, type(pipe).__name__)

        with replaced(pipe, "encode_prompt", encode):
            yield

    def _answer(self, own: Callable[..., Any], told: Mapping[str, Any], family: str) -> Any:
        texts = {name: value for name, value in told.items() if _is_texts(name, value)}
        rest = {name: value for name, value in told.items() if name not in texts}
        count = len(texts.get("prompt", ()))
        alike = all(len(value) == count for value in texts.values())
        if not count or not alike or not all(map(_is_plain, rest.values())):
            return own(**told)
        fixed = (family, *((name, repr(value)) for name, value in rest.items()))
        rows = []
        for row in range(count):
            one = {name: [value[row]] for name, value in texts.items()}
            key = (fixed, *((name, *value) for name, value in one.items()))
            if key not in self._known:
                self._known[key] = own(**{**told, **one})
                self._bytes += _bytes(self._known[key])
            self._known.move_to_end(key)
            rows.append(self._known[key])
            while self._bytes > _MOST:
                self._bytes -= _bytes(self._known.popitem(last=False)[1])
        try:
            return _joined(rows)
        except _Ragged:
            return own(**told)


def _is_texts(name: str, value: Any) -> bool:
    return "prompt" in name and isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_plain(value: Any) -> bool:
    """Says whether a value is told from others by its repr."""
    import torch

    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, torch.device, torch.dtype))


def _bytes(encoded: Any) -> int:
    if isinstance(encoded, (tuple, list)):
        return sum(map(_bytes, encoded))
    return int(getattr(encoded, "nbytes", 0))


def _joined(rows: Sequence[Any]) -> Any:
    """Puts together what single prompts were encoded as, as a batch would have been."""
    import torch

    first = rows[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(_joined(column) for column in zip(*rows, strict=True))
    if isinstance(first, list) and len(first) == 1:
        return [item for row in rows for item in row]
    if not isinstance(first, torch.Tensor) or any(row.shape != first.shape for row in rows):
        raise _Ragged
    if first.ndim and first.shape[0] == 1:
        return torch.cat(list(rows))
    if first.ndim < 2:
        raise _Ragged
    # The same for every prompt, such as the positions of the tokens.
    return first.clone()
