"""The OCR judge: the quoted text of a prompt against what is read in the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tts_verifier.choice.objective import Objective
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import Verifier, check_detail, check_pairs
from tts_verifier.types import Box, Cost, Detail, Heatmap, Heatmaps, Setting, Verdict
from tts_verifier.verifiers.judge_options import check_flags
from tts_verifier.verifiers.rules.matching import Match, best_matches, pieces_of
from tts_verifier.verifiers.rules.quoted import quoted_texts
from tts_verifier.verifiers.rules.reader import Quad, Reader, Word

NOTHING_QUOTED: Final = (
    "Not judged: the prompt has no text in quotes. Put the text that the image should show in "
    'quotes, as in: a shop with a sign that says "OPEN".'
)
_QUOTED_LETTERS: Final = 1000
"""Of all quoted texts of a prompt: comparing takes time that grows with their square."""
_GRID_SIDE: Final = 256
"""The longer side of a heatmap's grid; a smaller image has a cell for each pixel."""


class OCRVerifier(Verifier):
    """Scores how well an image shows the texts that its prompt puts in quotes.

    Safe to share between threads: they take turns at reading.

    `text_match` is the mean over the quoted texts of 1 - edit distance / the longer length, in
    [0, 1]; `text_exact` is 1 if all of them are read without a difference, else 0. White space
    and, by default, case do not count. Every text gets a run of neighbouring words, no word is
    used twice, and other text in the image does not matter.

    The heatmap `misspelling` is 1 over the words that differ, and `boxes` are around them, so that
    `inpaint_reroll` repaints these. A text that is not there has no place: its heatmap is 0, and
    `inpaint_reroll` draws afresh. `Verdict.text` says what was read for each text.

    An image without any text scores 0: what the prompt asks for is missing, and the verdict's text
    says so. A prompt without quoted text cannot be judged: its scores are NaN, and the verdict's
    `error` has the reason.

    Args:
        case_sensitive: whether "Open" and "OPEN" differ.
        threads: of the CPU for one image; None = as many as there are cores.

    Raises:
        UnsupportedError: the extra `ocr` is not installed.
        InputError: an argument is not usable.
        CheckpointError: the reader's weights cannot be loaded.
    """

    objective = Objective({"text_match": 1.0})
    score_names = ("text_match", "text_exact")
    details: tuple[Detail, ...] = ("diagnose",)

    def __init__(self, *, case_sensitive: bool = False, threads: int | None = None) -> None:
        check_flags(case_sensitive=case_sensitive)
        self.case_sensitive = case_sensitive
        self._reader = Reader(threads)
        self.settings: Mapping[str, Setting] = {
            "verifier": "ocr",
            "model": self._reader.model,
            "case_sensitive": case_sensitive,
        }

    def read(self, image: Image.Image) -> list[Word]:
        """Returns the words of an RGB image, in reading order."""
        return self._reader.read(image)

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Reads image i against prompt i; both details give the same verdict.

        Raises:
            InputError: an image cannot be used, or the lengths differ.
        """
        check_detail(detail)
        converted = as_images(images)
        texts = check_pairs(converted, prompts)
        return [self._verdict(i, p, detail) for i, p in zip(converted, texts, strict=True)]

    def _verdict(self, image: Image.Image, prompt: str, detail: Detail) -> Verdict:
        cost = Cost(verifier_calls=1)
        wanted = quoted_texts(prompt)
        if not wanted:
            nothing = dict.fromkeys(self.score_names, math.nan)
            return Verdict(nothing, detail=detail, cost=cost, error=NOTHING_QUOTED)
        if (letters := sum(map(len, wanted))) > _QUOTED_LETTERS:
            why = (
                f"Not judged: the quoted texts of a prompt must have at most {_QUOTED_LETTERS} "
                f"letters, these have {letters}. Quote the ones that matter."
            )
            nothing = dict.fromkeys(self.score_names, math.nan)
            return Verdict(nothing, detail=detail, cost=cost, error=why)
        words = self.read(image)
        if len(wanted) > 1:
            cased = self.case_sensitive
            pieces = [pieces_of(word.text, wanted, case_sensitive=cased) for word in words]
            words = [w for word, p in zip(words, pieces, strict=True) for w in word.split(p)]
        matches = best_matches(
            wanted, [word.text for word in words], case_sensitive=self.case_sensitive
        )
        wrong = [words[i].quad(*letters) for m in matches for i, *letters in m.wrong]
        scores = {
            "text_match": sum(match.similarity for match in matches) / len(matches),
            "text_exact": float(all(match.similarity == 1 for match in matches)),
        }
        heatmap = Heatmap(_heat_of_words(wrong, image.size), image.size)
        boxes = tuple(_box_around(quad, image.size) for quad in wrong)
        text = "\n".join(_said_of(match, words) for match in matches)
        return Verdict(scores, Heatmaps({"misspelling": heatmap}), boxes, text, detail, cost)


def _said_of(match: Match, words: Sequence[Word]) -> str:
    """Returns what is said of one wanted text."""
    if not match.words:
        read = "no text at all" if not words else "nothing like it"
        return f'"{match.wanted}": not found, {read} was read.'
    read = " ".join(words[i].text for i in match.words)
    if match.similarity == 1:
        return f'"{match.wanted}": read as it should be.'
    wrong = ", ".join(words[i].text[first : last + 1] for i, first, last in match.wrong)
    return f'"{match.wanted}": read "{read}", {match.similarity:.3f}, wrong: {wrong}.'


def _heat_of_words(quads: Sequence[Quad], size: tuple[int, int]) -> NDArray[np.float32]:
    """Returns a grid with the share of each cell that words cover."""
    cells = Image.new("L", size)
    draw = ImageDraw.Draw(cells)
    for quad in quads:
        draw.polygon(quad, fill=255)
    scale = min(1.0, _GRID_SIDE / max(size))
    grid = (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))
    shares = np.asarray(cells.resize(grid, Image.Resampling.BOX), np.float32) / np.float32(255)
    return np.ascontiguousarray(shares)


def _box_around(quad: Quad, size: tuple[int, int]) -> Box:
    """Returns the upright box around a word, inside the image."""
    xs, ys = (np.clip([corner[axis] for corner in quad], 0, size[axis]) for axis in (0, 1))
    return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))
