"""The verifier's held-out figures, a row a picture, with the controls that must fail.

`renders`: pictures with planted flaws whose captions training never saw. `samples`: the
generator's own, several a caption, held against the judge, which no training sees; half of
them with a planted artifact. Controls: `shuffled` gives every picture another one's caption,
`blank` a grey picture; the truth stays, so every figure must fall to chance. Chance is not 0
for the map of a shuffled caption: what is wrong lies on things, so that a perfect map for
another caption still correlates (`of_another_caption`). All goes through `Verifier.verify`:
what is measured is what users run.
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

from tts_verifier.errors import InputError
from tts_verifier.evaluation import auc, box_iou, correlation
from tts_verifier.interfaces import Verifier
from tts_verifier.shapes.artifacts import plant_artifacts
from tts_verifier.shapes.flaws import SCORE_NAMES
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.readers.constraints import Thing, compare
from tts_verifier.shapes.readers.judge import read_by_fitting
from tts_verifier.training.miniature.verifier.checks import held_out, pictures_of
from tts_verifier.training.miniature.verifier.data import Samples
from tts_verifier.types import Box, Detail, Verdict

Control = Literal["none", "shuffled", "blank"]
CONTROLS: Final[tuple[Control, ...]] = ("none", "shuffled", "blank")
OVERLAP: Final = 0.5
"""Least intersection over union of a box that points at a region."""
PASSED: Final = 1 - 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A picture, its caption and the truth, NaN or None where it is not known.

    `scores`: by name. `maps`: name -> float32 (128, 128) in [0, 1]. `boxes`: faulty regions
    in the picture's pixels, None = not known. `things`: what is there.
    """

    picture: Image.Image
    caption: str
    scores: Mapping[str, float]
    maps: Mapping[str, NDArray[np.float32]]
    boxes: Sequence[Box] | None = None
    things: Sequence[Thing] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One picture of one set under one control; NaN = not measured.

    `true_*` and `said_*`: scores. `cc_*`: correlation of a map with a truth that is not
    empty, 0 when the verifier gave no map. `regions`, `pointed_at`: true faulty regions, and
    those that a box of the reply overlaps by `OVERLAP`. `whole`: all four scores were read.
    """

    set: str
    control: str
    detail: str
    caption: str
    true_semantic_alignment: float
    true_aesthetics: float
    true_plausibility: float
    true_overall: float
    said_semantic_alignment: float
    said_aesthetics: float
    said_plausibility: float
    said_overall: float
    cc_misalignment: float
    cc_artifact: float
    regions: int
    pointed_at: int
    whole: bool
    text: str


def renders(count: int, seed: int) -> list[Case]:
    """Makes held-out pictures with planted flaws."""
    made = held_out(count, seed)
    flawed = made.flawed
    cases = []
    for i, (picture, caption) in enumerate(zip(made.pictures, made.captions, strict=True)):
        boxes = list(flawed.readings[i].boxes)
        if flawed.artifacts.kind[i] >= 0:
            x1, y1, x2, y2 = flawed.artifacts.box[i].tolist()
            boxes.append((x1, y1, x2, y2))
        maps = {
            "misalignment": flawed.misalignment[i].numpy(),
            "artifact": flawed.artifacts.map[i].numpy(),
        }
        scores = dict(zip(SCORE_NAMES, flawed.scores[i].tolist(), strict=True))
        cases.append(Case(picture, caption, scores, maps, boxes, flawed.readings[i].things))
    return cases


def sampled(samples: Samples, *, artifacts: bool, seed: int = 0) -> list[Case]:
    """Holds a generator's samples against the judge.

    Args:
        samples: several a caption, captions that training never saw.
        artifacts: plant one into every sample; then its map is the truth, else the score is.
        seed: of the planting.
    """
    pixels = torch.from_numpy(samples.images).permute(0, 3, 1, 2).float() / 255
    share = 1.0 if artifacts else 0.0
    planted = plant_artifacts(pixels, torch.Generator().manual_seed(seed), share=share)
    unknown = dict.fromkeys(SCORE_NAMES, math.nan)
    cases = []
    for i, (picture, caption) in enumerate(
        zip(pictures_of(planted.images), samples.captions, strict=True)
    ):
        reading = read_by_fitting(samples.images[i], parse_caption(caption))
        maps = {"misalignment": reading.misalignment}
        if artifacts:
            maps = {"artifact": planted.map[i].numpy()}
        scores = unknown | {"semantic_alignment": reading.score}
        cases.append(Case(picture, caption, scores, maps, things=reading.things))
    return cases


def measure(
    verifier: Verifier,
    cases: Sequence[Case],
    *,
    name: str,
    control: Control = "none",
    detail: Detail = "diagnose",
) -> list[Row]:
    """Asks the verifier about every case; `detail` "score" is the answer-only mode.

    Raises:
        InputError: there is no case, or the control is unknown.
    """
    if not cases or control not in CONTROLS:
        raise InputError(
            f"measure needs cases and a control of {', '.join(CONTROLS)}, got {len(cases)} cases "
            f"and {control!r}."
        )
    pictures = [case.picture for case in cases]
    captions = [case.caption for case in cases]
    if control == "shuffled":
        captions = _another(captions)
    if control == "blank":
        pictures = [Image.new("RGB", p.size, (225, 225, 225)) for p in pictures]
    verdicts = verifier.verify(pictures, captions, detail=detail)
    return [_row(c, v, name, control) for c, v in zip(cases, verdicts, strict=True)]


def _another(captions: Sequence[str]) -> list[str]:
    """Gives every place the caption of another, different wherever that is possible."""
    order = list(range(len(captions)))
    random.Random(0).shuffle(order)
    given = [captions[i] for i in order]
    return [
        next((g for g in (given[i], *given[:i][::-1], *given[i:]) if g != own), own)
        for i, own in enumerate(captions)
    ]


def _row(case: Case, verdict: Verdict, name: str, control: Control) -> Row:
    said = {f"said_{n}": verdict.scores.get(n, math.nan) for n in SCORE_NAMES}
    true = {f"true_{n}": case.scores[n] for n in SCORE_NAMES}
    boxes = case.boxes or ()
    return Row(
        set=name,
        control=control,
        detail=verdict.detail,
        caption=case.caption,
        cc_misalignment=_cc(case, verdict, "misalignment"),
        cc_artifact=_cc(case, verdict, "artifact"),
        regions=len(boxes),
        pointed_at=sum(any(box_iou(b, s) >= OVERLAP for s in verdict.boxes) for b in boxes),
        whole=all(map(math.isfinite, said.values())),
        text=verdict.text,
        **said,
        **true,
    )


def _cc(case: Case, verdict: Verdict, name: str) -> float:
    truth = case.maps.get(name)
    if truth is None or not truth.any():
        return math.nan
    if name not in verdict.heatmaps:
        return 0.0
    return _correlation(verdict.heatmaps[name], truth)


def _correlation(said: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    value = correlation(said.ravel(), truth.ravel())
    return 0.0 if math.isnan(value) else value


def of_another_caption(cases: Sequence[Case]) -> float:
    """Mean correlation with the true misalignment of the true map for the caption that the
    control `shuffled` gives: chance for that control, for it knows the picture and not what was
    asked."""
    others = _another([case.caption for case in cases])
    return _mean(
        [
            _correlation(compare(parse_caption(other), c.things).misalignment, truth)
            for c, other in zip(cases, others, strict=True)
            if (truth := c.maps.get("misalignment")) is not None and truth.any()
        ]
    )


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the figures of one set under one control; an unread score counts as the worst."""
    said = {n: _said(rows, n) for n in SCORE_NAMES}
    true = {n: np.array([getattr(r, f"true_{n}") for r in rows]) for n in SCORE_NAMES}
    regions = sum(r.regions for r in rows)
    groups = defaultdict(list)
    for row, value in zip(rows, said["semantic_alignment"], strict=True):
        groups[row.caption].append((value, row.true_semantic_alignment >= PASSED))
    within = [auc(*zip(*group, strict=True)) for group in groups.values()]
    known = [a for a in within if not math.isnan(a)]
    decided = (said["semantic_alignment"] >= PASSED) == (true["semantic_alignment"] >= PASSED)
    return {
        "pictures": len(rows),
        **{
            f"plcc_{n}": correlation(said[n], true[n])
            for n in SCORE_NAMES
            if not np.isnan(true[n]).any()
        },
        "decided_right": float(decided.mean()),
        "auc_within_caption": float(np.mean(known)) if known else math.nan,
        "captions_with_both": len(known),
        "cc_misalignment": _mean([r.cc_misalignment for r in rows]),
        "cc_artifact": _mean([r.cc_artifact for r in rows]),
        "regions_pointed_at": sum(r.pointed_at for r in rows) / regions if regions else math.nan,
        "replies_whole": float(np.mean([r.whole for r in rows])),
    }


def _said(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    values: list[float] = [getattr(row, f"said_{name}") for row in rows]
    return np.array([0.0 if math.isnan(value) else value for value in values])


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes rows as Parquet."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([asdict(row) for row in rows]), path)
