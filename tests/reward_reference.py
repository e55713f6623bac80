"""The rewards as slow, obvious loops over boxes and pixels, for single completions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

SIDE, FRAME = 288, 512
LABELS = {
    "semantic_score": r"Semantic Alignment score: ([0-9.]+);",
    "aesthetic_score": r"Aesthetic score: ([0-9.]+);",
    "plausibility_score": r"Plausibility score: ([0-9.]+);",
    "overall_score": r"Overall Impression score: ([0-9.]+)",
}
Grid = list[list[float]]


def reference(
    text: str,
    scores: Sequence[float],
    truths: dict[str, np.ndarray],
    predicted: dict[str, np.ndarray | None],
) -> dict[str, float]:
    """All twelve; maps by kind, "misalignment" and "artifact"."""
    found = {name: score(text, name, s) for name, s in zip(LABELS, scores, strict=True)}
    boxes = boxes_in(text)
    absent = any(value is None for value in predicted.values())
    for kind, factor in (("misalignment", 80), ("artifact", 40)):
        truth = resized(truths[kind])
        own = predicted[kind]
        drawn = resized(np.zeros((1, 1)) if absent or own is None else own)
        squares = ((drawn[y][x] - truth[y][x]) ** 2 for y in range(SIDE) for x in range(SIDE))
        found[f"{kind}_location_heatmap"] = 1 - min(factor * math.fsum(squares) / SIDE**2, 1)
        names = [f"{kind}_boundingbox_{part}" for part in ("iou", "avepixel", "union")]
        found |= dict(zip(names, grounding(boxes, truth), strict=True))
    return found


def score(text: str, name: str, truth: float) -> float:
    block = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if block is None:
        return 0.0
    match = re.search(LABELS[name], block.group(1))
    try:
        stated = float(match.group(1)) if match else 0.0
    except ValueError:
        stated = 0.0
    return 1 - 3 * abs(stated - truth)


def boxes_in(text: str) -> list[tuple[float, ...]]:
    number = r"\s*([+-]?\d+(?:\.\d+)?)\s*"
    pattern = rf"\[{number},{number},{number},{number}\]"
    return [
        tuple(float(np.float32(float(corner) * SIDE / FRAME)) for corner in match)
        for match in re.findall(pattern, text)
    ]


def grounding(boxes: list[tuple[float, ...]], truth: Grid) -> tuple[float, float, float]:
    """Uniqueness, compactness, coverage."""
    total = math.fsum(value for row in truth for value in row)
    if total == 0:
        return (0.0, 0.0, 0.0) if boxes else (1.0, 1.0, 1.0)
    if not boxes:
        return 0.0, 0.0, 0.0
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    overlap = sum(iou(a, b) for a, b in pairs) / len(pairs) if pairs else 0.0
    means, inside = [], set()
    for box in boxes:
        x1, y1, x2, y2 = (int(corner) for corner in box)
        pixels = [
            (y, x)
            for y in range(max(y1, 0), min(y2, SIDE))
            for x in range(max(x1, 0), min(x2, SIDE))
        ]
        if pixels:
            means.append(math.fsum(truth[y][x] for y, x in pixels) / len(pixels))
            inside |= set(pixels)
    compactness = sum(means) / len(means) if means else 0.0
    covered = math.fsum(truth[y][x] for y, x in inside)
    return 1 - overlap, compactness, covered / (total + 1e-8)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    def area(box: Sequence[float]) -> float:
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def resized(values: np.ndarray) -> Grid:
    """Bilinear, half-pixel centres, edges repeated, no smoothing, one pixel after another."""
    grid: Grid = np.asarray(values, np.float64).tolist()
    height, width = len(grid), len(grid[0])
    ys, xs = ([place(i, size) for i in range(SIDE)] for size in (height, width))
    return [
        [
            (1 - dy) * ((1 - dx) * grid[y][x] + dx * grid[y][min(x + 1, width - 1)])
            + dy
            * (
                (1 - dx) * grid[min(y + 1, height - 1)][x]
                + dx * grid[min(y + 1, height - 1)][min(x + 1, width - 1)]
            )
            for x, dx in xs
        ]
        for y, dy in ys
    ]


def place(i: int, size: int) -> tuple[int, float]:
    at = min(max((i + 0.5) * size / SIDE - 0.5, 0.0), size - 1.0)
    return int(at), at - int(at)
