"""Each case: why, the reward, what is given, and its value as computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tts_verifier.training.grpo.rewards import GROUNDING_REWARDS, REWARDS, total_rewards

TRUTH = {"semantic_alignment": 0.5, "aesthetics": 0.6, "plausibility": 0.7, "overall": 0.8}
ANSWER = (
    "<answer>Semantic Alignment score: 0.50; Misalignment Locations: <|misalignment|>; "
    "Aesthetic score: 0.60; Plausibility score: 0.70; Artifact Locations: <|artifact|>; "
    "Overall Impression score: 0.80</answer>"
)
SEMANTIC, OVERALL = "semantic_score", "overall_score"
MIS_MAP, ART_MAP = "misalignment_location_heatmap", "artifact_location_heatmap"
UNIQUE, COMPACT, COVER = (f"artifact_boundingbox_{x}" for x in ("iou", "avepixel", "union"))
MIS_UNIQUE, MIS_COMPACT, MIS_COVER = (
    f"misalignment_boundingbox_{x}" for x in ("iou", "avepixel", "union")
)


def filled(value: float, side: int = 288) -> np.ndarray:
    return np.full((side, side), value, np.float32)


def marked(*areas: tuple[int, int, int, int, float], side: int = 288) -> np.ndarray:
    """Zeros, but for areas (y1, y2, x1, x2, value)."""
    grid = filled(0, side)
    for y1, y2, x1, x2, value in areas:
        grid[y1:y2, x1:x2] = value
    return grid


EMPTY = filled(0)
QUARTER = marked((0, 144, 0, 144, 1))
"""The upper left quarter, [0,0,256,256] in the frame of 512 pixels."""
CORNER = np.array([[1, 0], [0, 0]], np.float32)
RAMP = (np.arange(144) + 0.5) / 144
"""The weights of the first of two pixels between both centres, as 288 pixels see it."""


def columns(
    artifact: Any = EMPTY,
    misalignment: Any = EMPTY,
    predicted: Sequence[Any] = (EMPTY, EMPTY),
    scores: Any = TRUTH,
) -> dict[str, Any]:
    """`predicted` is (misalignment, artifact)."""
    return {
        "artifact_map": [artifact],
        "misalignment_map": [misalignment],
        "predicted_misalignment": [predicted[0]],
        "predicted_artifact": [predicted[1]],
        "scores": [scores],
    }


def answer(text: str) -> str:
    return f"<think>…</think><answer>{text}</answer>"


def semantic(number: str) -> str:
    return answer(f"Semantic Alignment score: {number}; Aesthetic score: 0.6;")


def overall(number: str) -> str:
    return answer(f"Overall Impression score: {number}")


SCORES = [
    ("an exact score", SEMANTIC, ANSWER, 1.0),
    ("an exact score", "aesthetic_score", ANSWER, 1.0),
    ("an exact score", "plausibility_score", ANSWER, 1.0),
    ("an exact score", OVERALL, ANSWER, 1.0),
    ("too high by 0.3: 1 - 3 * 0.3", SEMANTIC, semantic("0.8"), 0.1),
    ("too low by 0.3: as much", SEMANTIC, semantic("0.2"), 0.1),
    ("a third off is worth nothing", OVERALL, overall("0.4666666666666667"), 0.0),
    ("0.8 off: negative", OVERALL, overall("0"), -1.4),
    ("no answer", SEMANTIC, "Semantic Alignment score: 0.5;", 0.0),
    ("no text", SEMANTIC, "", 0.0),
    ("an answer without its end", SEMANTIC, ANSWER.removesuffix("</answer>"), 0.0),
    ("an answer without its start", SEMANTIC, ANSWER.removeprefix("<answer>"), 0.0),
    ("the end before the start", SEMANTIC, "</answer>" + ANSWER.removesuffix("</answer>"), 0.0),
    ("an empty answer: a 0", SEMANTIC, answer(""), -0.5),
    ("the first of two answers", SEMANTIC, semantic("0.5") + semantic("1"), 1.0),
    ("an answer starts once", SEMANTIC, "<answer>" + semantic("0.5"), 1.0),
    ("over several lines", OVERALL, answer("\nOverall Impression score: 0.8\n"), 1.0),
    (
        "a score outside the answer: a 0",
        OVERALL,
        "Overall Impression score: 0.8" + answer(""),
        -1.4,
    ),
    ("another case: a 0", OVERALL, answer("overall impression score: 0.8"), -1.4),
    ("two spaces: a 0", SEMANTIC, semantic(" 0.5"), -0.5),
    ("no ';' where it is needed: a 0", SEMANTIC, answer("Semantic Alignment score: 0.5"), -0.5),
    ("a space before the ';': a 0", SEMANTIC, semantic("0.5 "), -0.5),
    ("the first with a ';'", SEMANTIC, semantic("0.9, Semantic Alignment score: 0.5"), 1.0),
    ("the last score needs none", OVERALL, overall("0.8 and"), 1.0),
    ("a point ends the sentence: a 0", OVERALL, overall("0.8."), -1.4),
    ("two points: a 0", SEMANTIC, semantic("0.5.0"), -0.5),
    ("points alone: a 0", SEMANTIC, semantic("..."), -0.5),
    ("no digit before the point", SEMANTIC, semantic(".5"), 1.0),
    ("no digit after the point", SEMANTIC, semantic("1."), -0.5),
    ("a sign: a 0", SEMANTIC, semantic("-0.5"), -0.5),
    ("an exponent before a ';': a 0", SEMANTIC, semantic("5e-1"), -0.5),
    ("an exponent: the part before it", OVERALL, overall("1e-1"), 0.4),
    ("another script's digits: a 0", SEMANTIC, semantic("٠.٥"), -0.5),
    ("not a number: a 0", SEMANTIC, semantic("nan"), -0.5),
    ("percent: 1 - 3 * 49.5", SEMANTIC, semantic("50"), -147.5),
    ("400 digits count as a million", SEMANTIC, semantic("9" * 400), 1 - 3 * (1e6 - 0.5)),
]


@pytest.mark.parametrize(("why", "name", "text", "value"), SCORES)
def test_scores(why: str, name: str, text: str, value: float) -> None:
    assert REWARDS[name](None, [text], **columns()) == pytest.approx([value], abs=1e-9), why


TENTH = filled(0.1)
MAPS = [
    ("equal maps", MIS_MAP, columns(EMPTY, QUARTER, (QUARTER, EMPTY)), 1.0),
    ("0.1 everywhere: 1 - 80 * 0.01", MIS_MAP, columns(predicted=(TENTH, EMPTY)), 0.2),
    ("0.1 everywhere: 1 - 40 * 0.01", ART_MAP, columns(predicted=(EMPTY, TENTH)), 0.6),
    ("the truth is higher", ART_MAP, columns(TENTH), 0.6),
    ("80 * 0.0225 is above 1", MIS_MAP, columns(predicted=(filled(0.15), EMPTY)), 0.0),
    ("40 * 0.0225 is not", ART_MAP, columns(predicted=(EMPTY, filled(0.15))), 0.1),
    ("everything wrong", ART_MAP, columns(filled(1)), 0.0),
    ("no tokens, nothing marked", MIS_MAP, columns(predicted=(None, None)), 1.0),
    ("no tokens: zeros", MIS_MAP, columns(EMPTY, TENTH, (None, None)), 0.2),
    ("one token: both are zeros", MIS_MAP, columns(EMPTY, TENTH, (TENTH, None)), 0.2),
    ("the other token: both are zeros", ART_MAP, columns(TENTH, EMPTY, (None, TENTH)), 0.6),
    ("81 of 82,944 pixels: 1 - 40 / 1,024", ART_MAP,
     columns(marked((9, 18, 0, 288, 1)), predicted=(EMPTY, marked((9, 18, 9, 288, 1)))),
     1 - 40 / 1024),
    ("a smaller map", MIS_MAP,
     columns(EMPTY, filled(0, 112), (filled(0.1, 112), filled(0, 112))), 0.2),
    ("a larger map", MIS_MAP, columns(EMPTY, filled(0, 512), (filled(0.1, 512), EMPTY)), 0.2),
    ("another shape than the truth", ART_MAP,
     columns(filled(0.3, 36), predicted=(EMPTY, filled(0.2, 18))), 0.6),
    ("no square", ART_MAP, columns(np.full((3, 7), 0.1, np.float32)), 0.6),
    ("a leading axis of one", ART_MAP, columns(TENTH[None]), 0.6),
    ("a tensor, half precision", ART_MAP, columns(torch.full((4, 4), 0.5).half(),
     predicted=(EMPTY, torch.full((4, 4), 0.625).bfloat16())), 0.375),
    ("double precision", ART_MAP, columns(np.full((4, 4), 0.1)), 0.6),
    ("nested lists, as data sets have them", ART_MAP, columns([[0.1, 0.1], [0.1, 0.1]]), 0.6),
]  # fmt: skip


@pytest.mark.parametrize(("why", "name", "given", "value"), MAPS)
def test_maps(why: str, name: str, given: dict[str, Any], value: float) -> None:
    assert REWARDS[name](None, [""], **given) == pytest.approx([value], abs=1e-5), why


def test_a_map_of_two_by_two_is_enlarged_with_half_pixel_centres() -> None:
    # A side: 72 pixels of the first pixel alone, a ramp of 144 between both centres, 72 of zeros.
    side = (72 + np.square(RAMP).sum()) / 288
    found = REWARDS[ART_MAP](None, [""], scaling="paper", **columns(CORNER))
    assert found == pytest.approx([1 - side**2], abs=1e-6)
    # The same with the map as large as it is drawn.
    line = np.concatenate([np.ones(72), RAMP[::-1], np.zeros(72)])
    large = np.outer(line, line).astype(np.float32)
    given = columns(CORNER, predicted=(EMPTY, large))
    assert REWARDS[ART_MAP](None, [""], **given) == pytest.approx([1.0], abs=1e-6)


BOXES = [
    ("nothing marked, no boxes", UNIQUE, "", EMPTY, 1.0),
    ("nothing marked, no boxes", COMPACT, "", EMPTY, 1.0),
    ("nothing marked, no boxes", COVER, "", EMPTY, 1.0),
    ("nothing marked, a box", UNIQUE, "[0,0,9,9]", EMPTY, 0.0),
    ("nothing marked, a box", COMPACT, "[0,0,9,9]", EMPTY, 0.0),
    ("nothing marked, a box", COVER, "[0,0,9,9]", EMPTY, 0.0),
    ("marked, no boxes", UNIQUE, "", QUARTER, 0.0),
    ("marked, no boxes", COMPACT, "", QUARTER, 0.0),
    ("marked, no boxes", COVER, "", QUARTER, 0.0),
    ("one box", UNIQUE, "[0,0,256,256]", QUARTER, 1.0),
    ("the same box twice", UNIQUE, "[0,0,256,256][0,0,256,256]", QUARTER, 0.0),
    ("half of each shared: IoU 1/3", UNIQUE, "[0,0,256,256][128,0,384,256]", QUARTER, 2 / 3),
    ("one of three pairs", UNIQUE, "[0,0,9,9][0,0,9,9][99,99,200,200]", QUARTER, 2 / 3),
    ("boxes that touch", UNIQUE, "[0,0,64,64][64,0,128,64]", QUARTER, 1.0),
    ("one inside the other: 1/4", UNIQUE, "[0,0,64,64][0,0,32,32]", QUARTER, 0.75),
    ("a reversed box overlaps nothing", UNIQUE, "[64,64,0,0][0,0,64,64]", QUARTER, 1.0),
    ("two points: no union", UNIQUE, "[8,8,8,8][8,8,8,8]", QUARTER, 1.0),
    ("beyond the picture it overlaps too", UNIQUE, "[600,0,700,9][600,0,700,9]", QUARTER, 0.0),
    ("two endless boxes", UNIQUE, f"[0,0,{'9' * 400},1]" * 2, QUARTER, 0.0),
    ("exactly on the mark", COMPACT, "[0,0,256,256]", QUARTER, 1.0),
    ("exactly on the mark", COVER, "[0,0,256,256]", QUARTER, 1.0),
    ("the whole picture", COMPACT, "[0,0,512,512]", QUARTER, 0.25),
    ("the whole picture", COVER, "[0,0,512,512]", QUARTER, 1.0),
    ("half of the mark", COMPACT, "[0,0,128,256]", QUARTER, 1.0),
    ("half of the mark", COVER, "[0,0,128,256]", QUARTER, 0.5),
    ("half on the mark", COMPACT, "[128,0,384,256]", QUARTER, 0.5),
    ("half on the mark", COVER, "[128,0,384,256]", QUARTER, 0.5),
    ("a mark of a half", COMPACT, "[0,0,256,256]", QUARTER / 2, 0.5),
    ("a mark of a half", COVER, "[0,0,256,256]", QUARTER / 2, 1.0),
    ("beside the mark", COMPACT, "[256,256,512,512]", QUARTER, 0.0),
    ("beside the mark", COVER, "[256,256,512,512]", QUARTER, 0.0),
    ("a mean over boxes, not pixels", COMPACT, "[0,0,256,256][0,0,512,512]", QUARTER, 0.625),
    ("shared pixels count once", COVER, "[0,0,128,256][64,0,128,256]", QUARTER, 0.5),
    ("two halves", COVER, "[0,0,128,256] and [128,0,256,256]", QUARTER, 1.0),
    ("a cross: 1/2 + 1/2 - 1/4", COVER, "[0,0,128,256][0,0,256,128]", QUARTER, 0.75),
    ("a reversed box alone", COMPACT, "[256,256,0,0]", QUARTER, 0.0),
    ("a reversed box alone", COVER, "[256,256,0,0]", QUARTER, 0.0),
    ("a reversed box does not count", COMPACT, "[256,256,0,0][0,0,256,256]", QUARTER, 1.0),
    ("outside of the picture", COMPACT, "[600,600,700,700]", QUARTER, 0.0),
    ("outside of the picture", COVER, "[-90,-90,-9,-9]", QUARTER, 0.0),
    ("cut at the edge", COMPACT, "[-100,-100,256,256]", QUARTER, 1.0),
    ("cut at the edge", COMPACT, "[0,0,9999,256]", QUARTER, 0.5),
    ("an endless box", COMPACT, f"[0,0,{'9' * 400},256]", QUARTER, 0.5),
    ("an endless box", COVER, f"[-{'9' * 400},0,{'9' * 400},256]", QUARTER, 1.0),
    ("1.6875 pixels are one", COVER, "[0,0,3,3]", QUARTER, 1 / 144**2),
    ("0.5625 pixels are none", COVER, "[0,0,1,1]", QUARTER, 0.0),
    ("-0.5625 is 0", COVER, "[-1,-1,256,256]", QUARTER, 1.0),
    ("signs, decimals, spaces", COVER, "[ +0 ,\n-0.0,256.00 , 256.4 ]", QUARTER, 1.0),
    ("within other brackets", COVER, "[[0,0,256,256]]", QUARTER, 1.0),
    ("numbered, as the prompt asks", COVER, "1.[0,0,128,256];\n2.[128,0,256,256]", QUARTER, 1.0),
    ("inside the answer too", COVER, answer("[0,0,256,256]"), QUARTER, 1.0),
    ("digits of another script", COVER, "[０,٠,２５６,256]", QUARTER, 1.0),
    ("five numbers are no box", COVER, "[0,0,0,256,256]", QUARTER, 0.0),
    ("three numbers are no box", UNIQUE, "[0,0,256]", QUARTER, 0.0),
    ("a number needs digits around its point", COVER, "[0.,.0,256,256]", QUARTER, 0.0),
    ("not numbers: no box", UNIQUE, "[nan,0,inf,9]", EMPTY, 1.0),
    ("an exponent is no box", UNIQUE, "[0,0,1e2,1e2]", EMPTY, 1.0),
    ("brackets that never end", UNIQUE, "[0,0,256,256", EMPTY, 1.0),
    ("a smaller map of the truth", COMPACT, "[0,0,512,256]", filled(0.5, 18), 0.5),
    ("a smaller map of the truth", COVER, "[0,0,512,128]", filled(0.5, 18), 0.25),
    ("a larger map of the truth", COMPACT, "[0,0,512,256]", marked((0, 512, 0, 256, 1), side=512),
     0.5),
    ("corner pixels of a 2 x 2 map: 72 of 1, half of the ramp", COVER, "[0,0,256,512]", CORNER,
     (72 + RAMP[72:].sum()) / 144),
    ("the same of its brightness", COMPACT, "[0,0,128,128]", CORNER, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("why", "name", "text", "truth", "value"), BOXES)
def test_boxes(why: str, name: str, text: str, truth: np.ndarray, value: float) -> None:
    given = columns(artifact=truth)
    assert REWARDS[name](None, [text], **given) == pytest.approx([value], abs=1e-6), why
    # The same boxes count for both maps.
    other = name.replace("artifact", "misalignment")
    given = columns(misalignment=truth)
    assert REWARDS[other](None, [text], **given) == pytest.approx([value], abs=1e-6), why


def test_boxes_on_an_artifact_cost_the_rewards_of_a_map_without_misalignment() -> None:
    table = total_rewards(None, ["[0,0,256,256]"], **columns(artifact=QUARTER))
    found = {name: float(table.terms[name][0]) for name in GROUNDING_REWARDS}
    assert found == pytest.approx(
        {UNIQUE: 1, COMPACT: 1, COVER: 1, MIS_UNIQUE: 0, MIS_COMPACT: 0, MIS_COVER: 0}
    )
