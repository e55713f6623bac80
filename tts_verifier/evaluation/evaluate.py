"""Measures a verifier on rated pictures, by the figures that papers publish.

A score or a heatmap that the verifier does not give is missing: it is counted, and no figure takes
it for 0. Figures are over the pictures that have what they need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from tts_verifier.errors import InputError
from tts_verifier.evaluation.heatmap_metrics import (
    MEASURES,
    RESOLUTION,
    heatmap_metrics,
    resized,
)
from tts_verifier.evaluation.metrics import plcc, srcc
from tts_verifier.evaluation.rated import ASPECTS, MARKED_MAPS, RatedPicture
from tts_verifier.interfaces import Verifier
from tts_verifier.types import Detail, Verdict

BATCH: Final = 64
"""Pictures that are verified at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedPicture:
    """What people and a verifier said of one picture."""

    picture: RatedPicture
    """The picture and its ratings."""
    scores: Mapping[str, float]
    """The verifier's scores by aspect; NaN = missing."""
    maps: Mapping[str, Mapping[str, float]]
    """Map -> each of MEASURES; a map that the verifier did not give is absent."""
    marked: Mapping[str, bool]
    """Map -> whether people marked anything on it."""
    reply: str = ""
    """The verifier's reply."""

    def as_row(self) -> dict[str, Any]:
        """Returns a flat row; what is missing or not defined is None."""
        row: dict[str, Any] = {"picture": self.picture.name, "prompt": self.picture.prompt}
        for aspect in ASPECTS:
            row[f"rated_{aspect}"] = self.picture.scores[aspect]
            row[aspect] = self.scores[aspect]
        for name in MARKED_MAPS:
            row[f"{name}_marked"] = self.marked[name]
            measures = self.maps.get(name, {})
            row |= {f"{name}_{m}": measures.get(m, math.nan) for m in MEASURES}
        row["reply"] = self.reply
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def evaluate(
    verifier: Verifier,
    pictures: Sequence[RatedPicture],
    *,
    detail: Detail = "diagnose",
    names: Mapping[str, str] | None = None,
    resolution: int = RESOLUTION,
    progress: Callable[[int], object] = lambda done: None,
) -> list[EvaluatedPicture]:
    """Verifies rated pictures and compares the verdicts with the ratings.

    Args:
        verifier: any verifier.
        pictures: at least one.
        detail: "score" asks for the numbers only, without maps.
        names: aspect -> the verifier's name for it, where that is another one.
        resolution: pixels along a side at which maps are compared.
        progress: is told how many pictures are done, after each batch.

    Raises:
        InputError: there is no picture, a name is no aspect, the resolution is below 2, or the
            verifier cannot use a picture or its prompt.
    """
    names = dict(zip(ASPECTS, ASPECTS, strict=True)) | dict(names or {})
    unknown = sorted(set(names) - set(ASPECTS))
    if unknown:
        raise InputError(f"An aspect is one of {', '.join(ASPECTS)}; got {', '.join(unknown)}.")
    if not pictures:
        raise InputError("A verifier is measured on at least one picture, got none.")
    if resolution < 2:
        raise InputError(f"Maps are compared at 2 pixels a side or more, got {resolution}.")
    done: list[EvaluatedPicture] = []
    for batch in _in_batches(pictures):
        verdicts = verifier.verify(
            [p.picture for p in batch], [p.prompt for p in batch], detail=detail
        )
        for picture, verdict in zip(batch, verdicts, strict=True):
            done.append(_evaluated(picture, verdict, names, resolution))
        progress(len(done))
    return done


def figures(pictures: Sequence[EvaluatedPicture]) -> dict[str, dict[str, float]]:
    """Returns the figures by aspect and map; one that is not defined is NaN.

    Returns:
        Each of ASPECTS has `plcc`, `srcc` and the number of `missing` scores; `average` has the
        means of the four. Each of MARKED_MAPS has the means of MEASURES, `mse_empty` over pictures
        on which nothing is marked, the number of `missing` maps, and that of the `marked` pictures
        whose map is there: all measures but the MSEs are means over these.
    """
    found = {aspect: _score_figures(pictures, aspect) for aspect in ASPECTS}
    found["average"] = {
        name: float(np.mean([found[aspect][name] for aspect in ASPECTS]))
        for name in ("plcc", "srcc")
    }
    return found | {name: _map_figures(pictures, name) for name in MARKED_MAPS}


def score_names(pictures: Sequence[EvaluatedPicture]) -> list[str]:
    """Returns the aspects of which the verifier gave at least one score."""
    return [a for a in ASPECTS if any(math.isfinite(p.scores[a]) for p in pictures)]


def _in_batches(pictures: Sequence[RatedPicture]) -> Iterator[Sequence[RatedPicture]]:
    for start in range(0, len(pictures), BATCH):
        yield pictures[start : start + BATCH]


def _evaluated(
    picture: RatedPicture, verdict: Verdict, names: Mapping[str, str], resolution: int
) -> EvaluatedPicture:
    scores = {aspect: float(verdict.scores.get(names[aspect], math.nan)) for aspect in ASPECTS}
    truths = {name: resized(picture.maps[name], resolution) for name in MARKED_MAPS}
    maps = {}
    for name, truth in truths.items():
        if name in verdict.heatmaps:
            # Straight from the decoder's grid to the resolution of the comparison.
            heatmap = replace(verdict.heatmaps.on_grid(name), size=(resolution, resolution))
            measured = heatmap_metrics(heatmap.on_image(), truth)
            maps[name] = {measure: float(values[0]) for measure, values in measured.items()}
    marked = {name: bool((truth > 0).any()) for name, truth in truths.items()}
    return EvaluatedPicture(picture, scores, maps, marked, verdict.text)


def _score_figures(pictures: Sequence[EvaluatedPicture], aspect: str) -> dict[str, float]:
    pairs = [(p.scores[aspect], p.picture.scores[aspect]) for p in pictures]
    given = [pair for pair in pairs if math.isfinite(pair[0])]
    predicted, rated = np.array(given).reshape(-1, 2).T
    return {
        "plcc": plcc(predicted, rated),
        "srcc": srcc(predicted, rated),
        "missing": len(pairs) - len(given),
    }


def _map_figures(pictures: Sequence[EvaluatedPicture], name: str) -> dict[str, float]:
    given = [p for p in pictures if name in p.maps]
    marked = [p for p in given if p.marked[name]]
    empty = [p for p in given if not p.marked[name]]
    means = {m: _mean_of(marked, name, m) for m in MEASURES}
    return {
        **means,
        "mse": _mean_of(given, name, "mse"),
        "mse_empty": _mean_of(empty, name, "mse"),
        "missing": len(pictures) - len(given),
        "marked": len(marked),
    }


def _mean_of(pictures: Sequence[EvaluatedPicture], name: str, measure: str) -> float:
    values = [p.maps[name][measure] for p in pictures]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
