"""Measures a verifier on held-out images, one row per image, with controls that must fail.

There are two sets of images:

- `rendered_cases`: renders with planted flaws whose captions training never saw.
- `sampled_cases`: the generator's own images, several for each caption, with or without a planted
  artifact. Their truth comes from the judge, whose readings no training sees.

There are two controls: `shuffled` gives every image the caption of another one, and `blank`
replaces every image by a grey one. The truth stays, so every figure must fall to chance. For the
heatmap of a shuffled caption chance is not 0: faults lie on objects, so even a perfect map for
another caption correlates with the truth (`chance_correlation`).

Everything goes through `Verifier.verify`, so it measures what users run.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tts_verifier import Verifier
from tts_verifier.errors import InputError
from tts_verifier.evaluation import auc, box_iou, plcc
from tts_verifier.shapes.artifacts import plant_artifacts
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.readers.constraints import Thing, compare
from tts_verifier.shapes.readers.judge import read_by_fitting
from tts_verifier.shapes.renderer import to_pil_images
from tts_verifier.training.miniature.verifier.checks import held_out_images
from tts_verifier.training.miniature.verifier.data import GeneratorSamples
from tts_verifier.types import Box, Detail, Verdict
from tts_verifier.types.score_names import SCORE_NAMES

ControlCondition = Literal["none", "shuffled", "blank"]
CONTROLS: Final[tuple[ControlCondition, ...]] = ("none", "shuffled", "blank")
MIN_IOU: Final = 0.5
"""Least intersection over union at which a box counts as pointing at a region."""
PASSED: Final = 1 - 1e-6
"""Semantic alignment from which on an image passes; below 1 because of rounding."""
GREY: Final = (225, 225, 225)
"""sRGB of a blank image, as light as the world's backgrounds."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """An image, its caption and the truth."""

    image: Image.Image
    """RGB, 128 x 128."""
    caption: str
    """The prompt that it is verified against."""
    scores: Mapping[str, float]
    """The true scores in [0, 1] by name; NaN = unknown."""
    maps: Mapping[str, NDArray[np.float32]]
    """The true heatmaps by name, (128, 128) in [0, 1]; an unknown one is absent."""
    boxes: Sequence[Box] | None = None
    """Faulty regions, xyxy in the image's pixels; None = unknown."""
    things: Sequence[Thing] = ()
    """The objects in the image."""


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One image of one set under one control, as a row of the table that is written."""

    set: str
    """Name of the set of images."""
    control: str
    """One of CONTROLS."""
    detail: str
    """The verifier's detail, `diagnose` or `score`."""
    caption: str
    """The image's own caption, also under a control."""
    true_semantic_alignment: float
    """True score in [0, 1]; NaN = unknown, as for the next three."""
    true_aesthetics: float
    """True score."""
    true_plausibility: float
    """True score."""
    true_overall: float
    """True score."""
    said_semantic_alignment: float
    """The verifier's score in [0, 1]; NaN = unreadable, as for the next three."""
    said_aesthetics: float
    """The verifier's score."""
    said_plausibility: float
    """The verifier's score."""
    said_overall: float
    """The verifier's score."""
    cc_misalignment: float
    """Correlation of the heatmap with the truth, 0 if the verifier returned no heatmap.

    NaN if the truth is unknown or empty.
    """
    cc_artifact: float
    """The same as `cc_misalignment`, for the artifact's heatmap."""
    regions: int
    """Number of true faulty regions."""
    pointed_at: int
    """Number of these regions that a box of the reply overlaps by `MIN_IOU`."""
    whole: bool
    """Whether all four scores could be read."""
    text: str
    """The reply."""


def rendered_cases(count: int, seed: int) -> list[Case]:
    """Makes cases of held-out renders with planted flaws."""
    held_out = held_out_images(count, seed)
    flawed = held_out.flawed
    cases = []
    for i, (image, caption) in enumerate(zip(held_out.images, held_out.captions, strict=True)):
        boxes = list(flawed.readings[i].boxes)
        if flawed.artifacts.kind[i] >= 0:
            x1, y1, x2, y2 = flawed.artifacts.box[i].tolist()
            boxes.append((x1, y1, x2, y2))
        maps = {
            "misalignment": flawed.misalignment[i].numpy(),
            "artifact": flawed.artifacts.map[i].numpy(),
        }
        scores = dict(zip(SCORE_NAMES, flawed.scores[i].tolist(), strict=True))
        cases.append(Case(image, caption, scores, maps, boxes, flawed.readings[i].things))
    return cases


def sampled_cases(samples: GeneratorSamples, *, artifacts: bool, seed: int = 0) -> list[Case]:
    """Makes cases of a generator's samples, with the judge's readings as the truth.

    Args:
        samples: several for each caption, with captions that training never saw.
        artifacts: whether to plant an artifact into every sample. The truth then has the artifact's
            heatmap instead of the misalignment's.
        seed: decides the planted artifacts.
    """
    pixels = torch.from_numpy(samples.images).permute(0, 3, 1, 2).float() / 255
    share = 1.0 if artifacts else 0.0
    planted = plant_artifacts(pixels, torch.Generator().manual_seed(seed), share=share)
    images = to_pil_images(planted.images)
    unknown = dict.fromkeys(SCORE_NAMES, math.nan)
    cases = []
    for i, (image, caption) in enumerate(zip(images, samples.captions, strict=True)):
        # Read before planting: an artifact changes neither the objects nor their alignment.
        reading = read_by_fitting(samples.images[i], parse_caption(caption))
        maps = {"misalignment": reading.misalignment}
        if artifacts:
            maps = {"artifact": planted.map[i].numpy()}
        scores = unknown | {"semantic_alignment": reading.score}
        cases.append(Case(image, caption, scores, maps, things=reading.things))
    return cases


def measure(
    verifier: Verifier,
    cases: Sequence[Case],
    *,
    name: str,
    control: ControlCondition = "none",
    detail: Detail = "diagnose",
) -> list[BenchmarkRow]:
    """Verifies every case.

    Args:
        verifier: the verifier to measure.
        cases: images and their truth.
        name: of the set of images.
        control: one of CONTROLS.
        detail: "score" is the answer-only mode.

    Raises:
        InputError: there is no case, or the control is unknown.
    """
    if not cases or control not in CONTROLS:
        raise InputError(
            f"measure needs cases and a control of {', '.join(CONTROLS)}, got {len(cases)} cases "
            f"and {control!r}."
        )
    images = [case.image for case in cases]
    captions = [case.caption for case in cases]
    if control == "shuffled":
        captions = _other_captions(captions)
    if control == "blank":
        images = [Image.new("RGB", image.size, GREY) for image in images]
    verdicts = verifier.verify(images, captions, detail=detail)
    return [_benchmark_row(c, v, name, control) for c, v in zip(cases, verdicts, strict=True)]


def _other_captions(captions: Sequence[str]) -> list[str]:
    """Returns another image's caption for every image, a different one wherever possible."""
    order = list(range(len(captions)))
    random.Random(0).shuffle(order)
    shuffled = [captions[i] for i in order]
    # A shuffle may put an equal caption in the same place, because a caption has several images.
    return [
        next((c for c in (shuffled[i], *shuffled[:i][::-1], *shuffled[i:]) if c != own), own)
        for i, own in enumerate(captions)
    ]


def _benchmark_row(
    case: Case, verdict: Verdict, name: str, control: ControlCondition
) -> BenchmarkRow:
    said = {f"said_{n}": verdict.scores.get(n, math.nan) for n in SCORE_NAMES}
    true = {f"true_{n}": case.scores[n] for n in SCORE_NAMES}
    boxes = case.boxes or ()
    return BenchmarkRow(
        set=name,
        control=control,
        detail=verdict.detail,
        caption=case.caption,
        cc_misalignment=_map_correlation(case, verdict, "misalignment"),
        cc_artifact=_map_correlation(case, verdict, "artifact"),
        regions=len(boxes),
        pointed_at=sum(any(box_iou(b, s) >= MIN_IOU for s in verdict.boxes) for b in boxes),
        whole=all(map(math.isfinite, said.values())),
        text=verdict.text,
        **said,
        **true,
    )


def _map_correlation(case: Case, verdict: Verdict, name: str) -> float:
    truth = case.maps.get(name)
    if truth is None or not truth.any():
        return math.nan
    if name not in verdict.heatmaps:
        return 0.0
    return _correlation_or_zero(verdict.heatmaps[name], truth)


def _correlation_or_zero(predicted: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Correlates two maps; a constant map says nothing and counts as 0."""
    value = plcc(predicted.ravel(), truth.ravel())
    return 0.0 if math.isnan(value) else value


def chance_correlation(cases: Sequence[Case]) -> float:
    """Returns a perfect verifier's `cc_misalignment` under the control `shuffled`.

    Such a verifier knows the image but not the caption. It returns the true map for the other
    caption, which correlates with the true map for the image's own caption: this is chance.
    """
    others = _other_captions([case.caption for case in cases])
    return _mean_defined(
        [
            _correlation_or_zero(compare(parse_caption(other), c.things).misalignment, truth)
            for c, other in zip(cases, others, strict=True)
            if (truth := c.maps.get("misalignment")) is not None and truth.any()
        ]
    )


def benchmark_figures(rows: Sequence[BenchmarkRow]) -> dict[str, float]:
    """Returns the figures of one set under one control.

    An unreadable score counts as 0, the worst score. A figure that the rows do not define is NaN,
    and `plcc_*` is absent for a score whose truth is unknown.
    """
    predicted = {n: _scores_or_zero(rows, n) for n in SCORE_NAMES}
    true = {n: np.array([getattr(r, f"true_{n}") for r in rows]) for n in SCORE_NAMES}
    regions = sum(r.regions for r in rows)
    aucs = _aucs_by_caption(rows, predicted["semantic_alignment"])
    passes = predicted["semantic_alignment"] >= PASSED
    decided = passes == (true["semantic_alignment"] >= PASSED)
    return {
        "pictures": len(rows),
        **{
            f"plcc_{n}": plcc(predicted[n], true[n])
            for n in SCORE_NAMES
            if not np.isnan(true[n]).any()
        },
        "decided_right": float(decided.mean()),
        "auc_within_caption": float(np.mean(aucs)) if aucs else math.nan,
        "captions_with_both": len(aucs),
        "cc_misalignment": _mean_defined([r.cc_misalignment for r in rows]),
        "cc_artifact": _mean_defined([r.cc_artifact for r in rows]),
        "regions_pointed_at": sum(r.pointed_at for r in rows) / regions if regions else math.nan,
        "replies_whole": float(np.mean([r.whole for r in rows])),
    }


def _aucs_by_caption(rows: Sequence[BenchmarkRow], predicted: NDArray[np.float64]) -> list[float]:
    """Returns the AUC of passing within each caption that has passing and failing images."""
    groups = defaultdict(list)
    for row, score in zip(rows, predicted, strict=True):
        groups[row.caption].append((score, row.true_semantic_alignment >= PASSED))
    aucs = [auc(*zip(*group, strict=True)) for group in groups.values()]
    return [value for value in aucs if not math.isnan(value)]


def _scores_or_zero(rows: Sequence[BenchmarkRow], name: str) -> NDArray[np.float64]:
    values: list[float] = [getattr(row, f"said_{name}") for row in rows]
    return np.array([0.0 if math.isnan(value) else value for value in values])


def _mean_defined(values: Sequence[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def write_rows(rows: Sequence[BenchmarkRow], path: Path) -> None:
    """Writes rows as a Parquet table."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([asdict(row) for row in rows]), path)
