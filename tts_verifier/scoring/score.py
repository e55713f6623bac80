"""Scores pairs of an image and a prompt; what cannot be scored has a reason."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, Final

from tts_verifier.errors import InputError, is_out_of_memory, readable_name
from tts_verifier.identity import canonical
from tts_verifier.images import read_image, unreadable
from tts_verifier.interfaces import Verifier
from tts_verifier.loading.regular_files import open_regular
from tts_verifier.log.schema import finite
from tts_verifier.scoring.batches import Picture, batches
from tts_verifier.scoring.rows import ScoreRow, sorted_rows
from tts_verifier.scoring.sources.pairs import Pair, pairs_of
from tts_verifier.types import Detail, Verdict

_BLOCK: Final = 1 << 20
"""Bytes of a file that are read at once for its hash."""


def score_files(
    verifier: Verifier, paths: Sequence[str], prompt: str, *, detail: Detail = "diagnose"
) -> list[ScoreRow]:
    """Scores files against one prompt and returns a row for each, best first.

    Args:
        verifier: scores the images.
        paths: image files; one that is none gets a row with its `error`.
        prompt: what the images should show.
        detail: "score" leaves out reasons, boxes and heatmaps.

    Raises:
        InputError: the prompt is empty.
    """
    return sorted_rows(list(scored(PairScorer(verifier, detail), pairs_of(paths, prompt))))


def score_pairs(
    verifier: Verifier, pairs: Sequence[Pair], *, detail: Detail = "diagnose"
) -> list[ScoreRow]:
    """Scores pairs and returns a row for each, with its `prompt`, best first; see `score_files`."""
    return sorted_rows(list(scored(PairScorer(verifier, detail, prompts=True), pairs)))


def scored(scorer: PairScorer, pairs: Iterable[Pair]) -> Iterator[ScoreRow]:
    """Yields a row for every pair, in order; only two batches are in memory at a time."""
    for batch in batches(pairs, scorer.read, scorer.verifier):
        yield from scorer.rows(batch)


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
        self.verifier, self._detail, self._prompts = verifier, detail, prompts
        self._stamps = hashlib.blake2b(self.settings(""), digest_size=8)

    def settings(self, prompt: str) -> bytes:
        """Returns all that decides a verdict besides the image; two of these are never alike."""
        # An objective that a recipe sets decides a row too; settings do not name it.
        objective = vars(self.verifier).get("objective")
        own = [] if objective is None else [objective.about()]
        settings = canonical([prompt, dict(self.verifier.settings), self._detail, *own])
        # JSON text has no NUL, so what follows cannot run into it.
        return settings.encode() + b"\0"

    def stamp(self, pair: Pair) -> int:
        """Returns 64 bits that are others when the pair, its `version` or the settings are."""
        # Paths and versions have no NUL. A million of these are made before a call goes on.
        about = f"{pair.image}\0{pair.version}\0{len(pair.error)}\0{pair.error}{pair.prompt}"
        digest = self._stamps.copy()
        digest.update(about.encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest(), "little")

    def read(self, pair: Pair, known: Callable[[str], bool] = lambda key: False) -> Picture:
        """Reads a pair's image. Safe to call in several threads.

        Args:
            pair: what to read; its `load` too is called in this thread.
            known: says of a key that its image need not be decoded.
        """
        settings, name, key = self.settings(pair.prompt), readable_name(pair.image), ""
        try:
            if pair.error:
                raise InputError(pair.error)
            with _file_of(pair) as file:
                key = _key(settings, file)
                file.seek(0)
                return Picture(pair, key, None if known(key) else read_image(file, name))
        except OSError as error:
            problem = str(unreadable(name, error))
            # It may be readable later, without a change of the file.
            pair = replace(pair, version="none")
        except InputError as error:
            problem = str(error)
        nothing = io.BytesIO(f"no file: {name}{pair.error}".encode())
        return Picture(pair, key or _key(settings, nothing), error=problem)

    def rows(self, pictures: Sequence[Picture]) -> list[ScoreRow]:
        """Returns a row for every picture, in order; one that cannot be scored has an `error`."""
        images = {i: p for i, p in enumerate(pictures) if p.image is not None}
        verdicts = self._verdicts(images)
        return [
            self._row(picture.pair, verdicts.get(i, picture.error))
            for i, picture in enumerate(pictures)
        ]

    def rows_by_key(self, pictures: Iterable[Picture]) -> dict[str, ScoreRow]:
        """Returns a row for every key, with its `key`; an image that is there twice is scored once.

        A picture with neither an image nor an error was known when it was read, and has no row.
        """
        by_key = {p.key: p for p in pictures if p.image is not None or p.error}
        rows = self.rows(list(by_key.values()))
        return {key: {**row, "key": key} for key, row in zip(by_key, rows, strict=True)}

    def named(self, pair: Pair) -> ScoreRow:
        """Returns the beginning of a pair's row: what it is about."""
        prompt = {"prompt": pair.prompt} if self._prompts else {}
        return {"image": readable_name(pair.image), **prompt}

    def _verdicts(self, pictures: dict[int, Picture]) -> dict[int, Verdict | str]:
        """Returns verdicts by number, or why there is none."""
        if not pictures:
            return {}
        images = [picture.image for picture in pictures.values() if picture.image is not None]
        prompts = [picture.pair.prompt for picture in pictures.values()]
        try:
            verdicts = self.verifier.verify(images, prompts, detail=self._detail)
            return dict(zip(pictures, verdicts, strict=True))
        except InputError as error:
            if len(pictures) == 1:
                return dict.fromkeys(pictures, str(error))
        except Exception as error:
            if len(pictures) == 1 or not is_out_of_memory(error):
                raise
        # Outside of `except`: the error keeps the failed call's tensors alive. One image that the
        # verifier refuses must not cost its neighbours theirs. Halves, so that one in hundreds
        # costs some ten calls.
        half = len(pictures) // 2
        parts = list(pictures.items())
        return self._verdicts(dict(parts[:half])) | self._verdicts(dict(parts[half:]))

    def _row(self, pair: Pair, verdict: Verdict | str) -> ScoreRow:
        row = self.named(pair)
        if isinstance(verdict, str):
            return row | {"objective": None, "error": verdict}
        error = {"error": verdict.error} if verdict.error else {}
        return row | {
            "objective": finite(self.verifier.objective(verdict.scores)),
            **{name: finite(value) for name, value in verdict.scores.items()},
            "boxes": verdict.boxes,
            "reply": verdict.text,
            **error,
        }


def _key(settings: bytes, file: BinaryIO) -> str:
    digest = hashlib.sha256(settings)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()[:16]


def _file_of(pair: Pair) -> BinaryIO:
    return open_regular(pair.image) if pair.load is None else io.BytesIO(pair.load())
