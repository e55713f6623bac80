"""Simulated raters: they score a picture, mark points on it and words of its prompt.

In RichHF (Liang et al. 2024) three of 27 raters look at each picture. Here they err as follows:

- **Scores** are whole numbers from 1 to 5: 1 + 4 * truth, plus the rater's own leniency (a normal
  of deviation `LENIENCY`, the same for all pictures), plus a normal of deviation `WAVERING`,
  rounded and kept in [1, 5]. The three numbers are averaged, and (mean - 1) / 4 is the score: a
  multiple of 1/12.
- **Points**: a rater notices each faulty region with probability `NOTICED` and puts one to
  `MOST_POINTS` points into its middle, by its area. Each hand is off by a normal of `HAND` pixels.
  With probability `STRAY` a rater also marks a place where nothing is wrong. A point marks a disc
  of `DISC` pixels; a map is the mean of the three raters' marks: 0, 85, 170 or 255.
- **Words**: a rater marks a misaligned word with probability `WORD_NOTICED`, any other with
  probability `WORD_STRAY`. A word is misaligned if two of three say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tts_verifier.training.richhf.fields import MAP_SIDE
from tts_verifier.types import Box

POOL: Final = 27
"""Raters in all."""
RATERS: Final = 3
"""Raters of a picture."""
LENIENCY: Final = 0.3
"""Deviation of a rater's leniency, in points of the scale from 1 to 5."""
WAVERING: Final = 0.6
"""Deviation of a single opinion, in points of that scale."""
NOTICED: Final = 0.85
"""Probability that a rater notices a faulty region."""
STRAY: Final = 0.03
"""Probability that a rater marks one place too many on a map."""
HAND: Final = 6.0
"""Deviation of a point along either axis, in pixels of 512."""
DISC: Final = MAP_SIDE / 20
"""Radius of the disc that a point marks, in pixels of 512, as in RichHF."""
AREA_OF_A_POINT: Final = 6000.0
"""Area of a region for which a rater puts one more point, in pixels of 512."""
MOST_POINTS: Final = 5
"""Most points that a rater puts into a region."""
MIDDLE: Final = 0.7
"""Share of a region's sides within which points are put."""
WORD_NOTICED: Final = 0.9
"""Probability that a rater marks a misaligned word."""
WORD_STRAY: Final = 0.02
"""Probability that a rater marks any other word."""


class RaterPanel:
    """Three raters who look at one picture after another. Not safe to share between threads.

    Args:
        seed: decides the pool of raters and is the same for a whole data set.
        part_seed: decides who looks at which picture, and every error.
    """

    def __init__(self, seed: int, part_seed: int) -> None:
        self._leniency = np.random.default_rng(seed).normal(0, LENIENCY, POOL)
        self._rng = np.random.default_rng(part_seed)

    def scores(self, truth: Mapping[str, float]) -> dict[str, float]:
        """Rates every true score in [0, 1] by three raters of the pool."""
        rng = self._rng
        leniency = self._leniency[rng.choice(POOL, RATERS, replace=False)]
        rated: dict[str, float] = {}
        for name, value in truth.items():
            opinion = 1 + 4 * value + leniency + rng.normal(0, WAVERING, RATERS)
            rated[name] = float((opinion.round().clip(1, 5).mean() - 1) / 4)
        return rated

    def marks(self, regions: Sequence[Box]) -> NDArray[np.uint8]:
        """Marks faulty regions, xyxy in pixels of 512: a map, uint8 (512, 512)."""
        rng = self._rng
        votes = np.zeros((MAP_SIDE, MAP_SIDE), np.uint8)
        for _ in range(RATERS):
            points = [self._points(box) for box in regions if rng.random() < NOTICED]
            if rng.random() < STRAY:
                points.append(rng.uniform(0, MAP_SIDE, (1, 2)))
            mine = np.zeros_like(votes, dtype=bool)
            for x, y in np.concatenate(points) if points else ():
                _draw_disc(mine, x, y)
            votes += mine
        return votes * np.uint8(255 // RATERS)

    def words(self, aligned: Sequence[bool]) -> tuple[bool, ...]:
        """Decides for each word of a prompt whether the raters find it shown."""
        marked = np.where(np.asarray(aligned, bool), WORD_STRAY, WORD_NOTICED)
        votes = (self._rng.random((RATERS, len(marked))) < marked).sum(0)
        return tuple((votes < 2).tolist())

    def _points(self, box: Box) -> NDArray[np.float64]:
        x1, y1, x2, y2 = box
        area = max(x2 - x1, 0) * max(y2 - y1, 0)
        count = min(1 + int(area / AREA_OF_A_POINT), MOST_POINTS)
        middle, half = np.array([x1 + x2, y1 + y2]) / 2, np.array([x2 - x1, y2 - y1]) / 2
        aimed = middle + MIDDLE * half * self._rng.uniform(-1, 1, (count, 2))
        points: NDArray[np.float64] = aimed + self._rng.normal(0, HAND, (count, 2))
        return points.clip(0, MAP_SIDE - 1)


def _draw_disc(marked: NDArray[np.bool_], x: float, y: float) -> None:
    low_x, low_y = (max(int(c - DISC), 0) for c in (x, y))
    window = marked[low_y : int(y + DISC) + 2, low_x : int(x + DISC) + 2]
    rows, columns = np.ogrid[: window.shape[0], : window.shape[1]]
    window |= np.hypot(columns + low_x + 0.5 - x, rows + low_y + 0.5 - y) <= DISC
