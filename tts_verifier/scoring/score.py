"""Scores pairs of an image and a prompt, a few at a time; what cannot be scored has a reason."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from PIL import Image

from tts_verifier.errors import InputError, readable_name
from tts_verifier.identity import canonical
from tts_verifier.images import as_image
from tts_verifier.interfaces import Verifier
from tts_verifier.loading.regular_files import open_regular
from tts_verifier.log.schema import finite
from tts_verifier.scoring.pairs import Pair, pairs_of
from tts_verifier.scoring.rows import ScoreRow, sorted_rows
from tts_verifier.types import Detail, Verdict

_BATCH: Final = 8
_BLOCK: Final = 1 << 20
"""Bytes of a file that are read at once for its hash."""


def score_files(
    verifier: Verifier, paths: Sequence[str], prompt: str, *, detail: Detail = "diagnose"
) -> list[ScoreRow]:
    """Scores files against one prompt and returns a row for each, best first.

    Args:
        verifier: scores the images, a few at a time.
        paths: image files; one that is none gets a row with its `error`.
        prompt: what the images should show.
        detail: "score" leaves out reasons, boxes and heatmaps.

    Raises:
        InputError: the prompt is empty.
    """
    scorer = PairScorer(verifier, detail)
    rows = [row for batch in batches(pairs_of(paths, prompt)) for row in scorer.rows(batch)]
    return sorted_rows(rows)


def score_pairs(
    verifier: Verifier, pairs: Sequence[Pair], *, detail: Detail = "diagnose"
) -> list[ScoreRow]:
    """Scores pairs and returns a row for each, with its `prompt`, best first; see `score_files`."""
    scorer = PairScorer(verifier, detail, prompts=True)
    return sorted_rows([row for batch in batches(pairs) for row in scorer.rows(batch)])


class PairScorer:
    """Scores pairs; as safe to share between threads as its verifier.

    Args:
        verifier: scores the images.
        detail: "score" leaves out reasons, boxes and heatmaps.
        prompts: whether rows have `prompt`.

    Raises:
        InputError: the verifier's objective is relative.
    """

    def __init__(self, verifier: Verifier, detail: Detail, *, prompts: bool = False) -> None:
        if verifier.objective.relative:
            raise InputError(
                "Files are scored one by one, so combine must be 'sum' or 'worst', got "
                f"{verifier.objective.combine!r}, which compares images of one prompt. Take "
                "Verifier.rerank for that, or another combine."
            )
        self._verifier, self._detail, self._prompts = verifier, detail, prompts

    def key(self, pair: Pair) -> str:
        """Returns a hash of the file's bytes (its name if it is missing), prompt and settings."""
        # An objective that a recipe sets decides a row too; settings do not name it.
        objective = vars(self._verifier).get("objective")
        own = [] if objective is None else [objective.about()]
        settings = canonical([pair.prompt, dict(self._verifier.settings), self._detail, *own])
        # JSON text has no NUL, so the two parts cannot run into each other.
        digest = hashlib.sha256(settings.encode() + b"\0")
        content = digest.copy()
        try:
            if pair.error:
                raise OSError(pair.error)
            with open_regular(pair.image) as file:
                while block := file.read(_BLOCK):
                    content.update(block)
        except OSError:
            content = digest
            content.update(f"no file: {readable_name(pair.image)}{pair.error}".encode())
        return content.hexdigest()[:16]

    def rows(self, pairs: Sequence[Pair]) -> list[ScoreRow]:
        """Returns a row for every pair, in order; one that cannot be scored has an `error`."""
        errors: dict[int, str] = {}
        images: dict[int, Image.Image] = {}
        for i, pair in enumerate(pairs):
            try:
                if pair.error:
                    raise InputError(pair.error)
                images[i] = as_image(pair.image)
            except InputError as error:
                errors[i] = str(error)
        verdicts = self._verdicts({i: (images[i], pairs[i].prompt) for i in images})
        return [
            self._row(pair, errors[i] if i in errors else verdicts[i])
            for i, pair in enumerate(pairs)
        ]

    def named(self, pair: Pair) -> ScoreRow:
        """Returns the beginning of a pair's row: what it is about."""
        prompt = {"prompt": pair.prompt} if self._prompts else {}
        return {"image": readable_name(pair.image), **prompt}

    def _verdicts(self, pairs: dict[int, tuple[Image.Image, str]]) -> dict[int, Verdict | str]:
        """Returns verdicts by number, or why there is none."""
        if not pairs:
            return {}
        images, prompts = zip(*pairs.values(), strict=True)
        try:
            verdicts = self._verifier.verify(list(images), list(prompts), detail=self._detail)
        except InputError as error:
            if len(pairs) == 1:
                return dict.fromkeys(pairs, str(error))
            # One image that the verifier refuses must not cost its neighbours theirs.
            single = [self._verdicts({i: pair}) for i, pair in pairs.items()]
            return {i: verdict for found in single for i, verdict in found.items()}
        return dict(zip(pairs, verdicts, strict=True))

    def _row(self, pair: Pair, verdict: Verdict | str) -> ScoreRow:
        row = self.named(pair)
        if isinstance(verdict, str):
            return row | {"objective": None, "error": verdict}
        return row | {
            "objective": finite(self._verifier.objective(verdict.scores)),
            **{name: finite(value) for name, value in verdict.scores.items()},
            "boxes": verdict.boxes,
            "reply": verdict.text,
        }


def batches(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Yields the pairs, a few at a time."""
    for start in range(0, len(pairs), _BATCH):
        yield pairs[start : start + _BATCH]
