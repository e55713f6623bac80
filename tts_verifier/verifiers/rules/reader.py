"""Reads the words in an image with RapidOCR, whose wheel holds the weights (PP-OCRv6, small).

Source: https://github.com/RapidAI/RapidOCR, Apache-2.0 for the code and the models.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import CheckpointError, InputError, UnsupportedError

Quad = tuple[tuple[float, float], ...]
"""Four corners (x, y) in pixels of the image: top left, top right, bottom right, bottom left, as
the text runs."""

MIN_CONFIDENCE: Final = 0.3
"""Lines that are read with less are texture rather than letters."""

_SHORTER_SIDE: Final = 512
"""Pixels to which the shorter side of a smaller image is enlarged to find lines."""
_LEAST_SIDE: Final = 32
"""Pixels of an image's shorter side."""
_NARROWEST: Final = 4
"""An image's longer side is at most so many times its shorter side."""
_MARGIN: Final = 0.15
"""Of the height of a line's box, above and below its ink; measured on texts over photographs."""
_X_HEIGHT: Final = 0.53
_ABOVE: Final = 0.19
_BELOW: Final = 0.20
"""Parts of a letter in units of the font's size, as in common typefaces without serifs."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word that was read."""

    text: str
    """Without white space. Readers miss spaces, so it may be several words."""
    letters: tuple[Quad, ...]
    """Where each letter is, as high as the line."""
    confidence: float
    """The reader's, of its line, in [0, 1]."""
    tall: tuple[bool, bool]
    """Whether letters of its line rise above, and whether they fall below, those like x."""

    def split(self, pieces: Sequence[str]) -> list[Word]:
        """Returns the word in pieces, which are its text when they are joined."""
        words, start = [], 0
        for piece in pieces:
            letters = self.letters[start : start + len(piece)]
            words.append(replace(self, text=piece, letters=letters))
            start += len(piece)
        return words

    def quad(self, first: int = 0, last: int = -1) -> Quad:
        """Returns the corners around the ink of some letters, first to last."""
        text = self.text[first:][: None if last < 0 else last - first + 1]
        top, bottom = _ink(text, self.tall)
        one, other = self.letters[first], self.letters[last]
        left, right = (_between(one, top, bottom), _between(other, top, bottom))
        return left[0], right[1], right[2], left[3]


class Reader:
    """Reads words. Safe to share between threads: they take turns.

    Args:
        threads: of the CPU; None = as many as there are cores.

    Raises:
        UnsupportedError: the extra `ocr` is not installed.
        InputError: `threads` is not usable.
        CheckpointError: the weights cannot be loaded.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (isinstance(threads, bool) or not _is_count(threads)):
            raise InputError(
                f"threads must be None or a number from 1 up, got {threads!r}.",
                argument="threads",
            )
        try:
            import onnxruntime  # noqa: F401
            from rapidocr import RapidOCR
        except ImportError as error:
            raise UnsupportedError(
                f"The OCR judge needs rapidocr and onnxruntime ({error}). Install them: "
                'pip install "tts-verifier[ocr]".'
            ) from error
        params = {
            # It logs every path and warns of every image without text.
            "Global.log_level": "critical",
            "Global.text_score": MIN_CONFIDENCE,
            "Global.use_cls": False,
            # RapidOCR's 736 reads texts over photographs of 512 x 512 no better, in twice the time.
            "Det.limit_side_len": _SHORTER_SIDE,
            "Global.return_word_box": True,
            "Global.return_single_char_box": True,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads or -1,
        }
        self._lock = threading.Lock()
        try:
            self._network = RapidOCR(params=params)
            # The weights are loaded with the first image; a run should not draw before.
            self._network(np.full((64, 64, 3), 255, np.uint8))
            weights = self._network.cfg.Rec
            self.model = f"{weights.ocr_version.value} {weights.model_type.value}"
            """The name of the weights, which another version of rapidocr may exchange."""
        except Exception as error:
            raise CheckpointError(
                f"The weights of the OCR judge must be in rapidocr's wheel, and loading them "
                f"failed: {error!r:.300}. Install it again: "
                'pip install --force-reinstall "tts-verifier[ocr]".'
            ) from error

    def read(self, image: Image.Image) -> list[Word]:
        """Returns the words of an RGB image in reading order; none if there is no text.

        Words of one row go from left to right, rows from top to bottom.
        """
        # RapidOCR expects the channels in OpenCV's order.
        pixels = _widened(np.asarray(image.convert("RGB"))[:, :, ::-1])
        # It keeps the options of a call in attributes.
        with self._lock:
            found: Any = self._network(pixels)
        if not getattr(found, "txts", None):
            return []
        lines = [
            _words(*line)
            for line in zip(found.boxes, found.txts, found.scores, found.word_results, strict=True)
        ]
        return [word for line in _reading_order(lines) for word in line]


def _widened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Makes a very narrow or small image wider, below and on the right, in its mean colour.

    The reader enlarges an image until its shorter side has `_SHORTER_SIDE` pixels; without this,
    a strip of 3 x 500 pixels would take gigabytes.
    """
    height, width = pixels.shape[:2]
    least = max(_LEAST_SIDE, -(-max(height, width) // _NARROWEST))
    shape = (max(height, least), max(width, least), 3)
    padded = np.empty(shape, np.uint8)
    padded[:] = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
    padded[:height, :width] = pixels
    return padded


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _words(
    box: Any, text: str, confidence: float, letters: Sequence[tuple[str, float, Any]]
) -> list[Word]:
    """Splits a line into words with their places.

    Args:
        box: (4, 2), the corners of the line.
        text: of the line.
        confidence: of the line.
        letters: (letter, confidence, corners) of all letters but spaces.
    """
    pieces, start, words = text.split(), 0, []
    quads = [_as_quad(quad) for _, _, quad in letters]
    count = sum(map(len, pieces))
    if len(quads) != count:
        # Without a place for every letter, all of them share that of the line.
        quads = [_as_quad(box)] * count
    tall = (any(map(_rises, text)), any(map(_falls, text)))
    for piece in pieces:
        end = start + len(piece)
        words.append(Word(piece, tuple(quads[start:end]), float(confidence), tall))
        start = end
    return words


def _as_quad(corners: Any) -> Quad:
    return tuple((float(x), float(y)) for x, y in corners)


def _rises(letter: str) -> bool:
    return letter not in "acegmnopqrsuvwxyz.,:;-_~ "


def _falls(letter: str) -> bool:
    # What is not Latin may fall as well.
    return letter in "gjpqy,;()[]{}/|_Q@" or ord(letter) > 0x24F


def _ink(text: str, tall: tuple[bool, bool]) -> tuple[float, float]:
    """Returns top and bottom of the ink of some letters, as fractions of the height of their line.

    The box of a line has a margin. Inside it, letters like x fill their share of the height.
    """
    above = _ABOVE if tall[0] else 0.0
    below = _BELOW if tall[1] else 0.0
    unit = (1 - 2 * _MARGIN) / (above + _X_HEIGHT + below)
    top = _MARGIN if any(map(_rises, text)) else _MARGIN + unit * above
    bottom = 1 - _MARGIN if any(map(_falls, text)) else 1 - _MARGIN - unit * below
    return top, bottom


def _between(quad: Quad, top: float, bottom: float) -> Quad:
    """Returns a letter's corners moved to the fractions `top` and `bottom` of its height."""
    corners = np.array(quad)
    upper, lower = corners[:2], corners[3:1:-1]
    high, low = upper + top * (lower - upper), upper + bottom * (lower - upper)
    return _as_quad((high[0], high[1], low[1], low[0]))


def _reading_order(lines: Sequence[list[Word]]) -> list[list[Word]]:
    """Sorts lines into rows: a line is in a row if it overlaps it by half of the lower height."""
    rows: list[tuple[float, float, list[list[Word]]]] = []
    for line in sorted((line for line in lines if line), key=lambda line: _extent(line, 1)[0]):
        top, bottom = _extent(line, 1)
        for place, (start, end, members) in enumerate(rows):
            if min(bottom, end) - max(top, start) > 0.5 * min(bottom - top, end - start):
                rows[place] = (min(start, top), max(end, bottom), [*members, line])
                break
        else:
            rows.append((top, bottom, [line]))
    return [line for _, _, row in rows for line in sorted(row, key=lambda line: _extent(line, 0))]


def _extent(line: Sequence[Word], axis: int) -> tuple[float, float]:
    values = [corner[axis] for word in line for quad in word.letters for corner in quad]
    return min(values), max(values)
