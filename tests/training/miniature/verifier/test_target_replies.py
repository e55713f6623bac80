from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.training.miniature.verifier import target_replies
from tts_verifier.training.verifier import answers
from tts_verifier.verifiers.imagedoctor.text import reply

CIRCLE = Thing("circle", "red", (30.0, 66.0), (14.0, 50.0, 46.0, 82.0))
SQUARE = Thing("square", "green", (100.0, 76.0), (85.0, 61.0, 115.0, 91.0))
STAR = Thing("star", "blue", (100.0, 20.0), (90.0, 10.0, 110.0, 30.0))


def reading_of(caption: str, *things: Thing) -> Reading:
    return compare(parse_caption(caption), things)


def checks(caption: str, *things: Thing) -> str:
    return target_replies.checks_text(
        parse_caption(caption), reading_of(caption, *things)
    ).removeprefix("\nChecks:")


def test_objects_are_listed_from_top_to_bottom_in_the_frame_of_512() -> None:
    assert target_replies.objects_text([CIRCLE, SQUARE, STAR]) == (
        "<think>\nObjects:#1 blue star 400 80 80#2 red circle 120 264 128"
        "#3 green square 400 304 120"
    )
    assert target_replies.objects_text([]) == "<think>\nObjects: none"


def test_every_constraint_is_compared_and_their_weights_are_added_up() -> None:
    assert checks("a red circle left of a blue square", CIRCLE, SQUARE) == (
        " red circle - red circle 120 264 ok; blue square - green square 400 304 wrong colour;"
        " left of 120 400 ok; nothing else ok; 8/9"
    )
    assert checks("a red circle above a square", CIRCLE, SQUARE, STAR) == (
        " red circle - red circle 120 264 ok; square - green square 400 304 ok;"
        " above 264 304 wrong; nothing else wrong; 5/8"
    )
    assert checks("a star", CIRCLE).startswith(" star - red circle 120 264 wrong shape;")
    assert checks("a star and a ring") == " star - missing; ring - missing; nothing else ok; 1/5"


def test_a_count_says_how_many_there_are() -> None:
    assert checks("three blue stars", STAR, CIRCLE) == (
        " three blue star - 1 wrong; blue ok; nothing else wrong; 3/6"
    )


def test_faulty_regions_are_the_misaligned_things_and_the_artifact() -> None:
    reading = reading_of("a red circle", CIRCLE, SQUARE, STAR)
    regions = target_replies.faulty_regions(reading, (0.0, 0.0, 127.0, 3.0), "smear")
    assert target_replies.regions_text(regions) == (
        "\nI need to focus on the bounding box area. Proposed regions (xyxy): "
        "1.[360,40,440,120] misaligned;2.[336,240,464,368] misaligned;3.[0,0,512,16] smear"
    )
    assert target_replies.regions_text([]).endswith("(xyxy): none")


boxes = st.tuples(*[st.floats(0, 128)] * 4)


@given(boxes)
def test_a_quantised_box_always_has_an_area(box: tuple[float, float, float, float]) -> None:
    x1, y1, x2, y2 = target_replies.quantise_box(box)
    assert 0 <= x1 < x2 <= 512
    assert 0 <= y1 < y2 <= 512
    assert not any(v % 8 for v in (x1, y1, x2, y2))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.sampled_from(["", "smear"]))
def test_a_reply_is_read_back_by_the_verifier(values: list[float], kind: str) -> None:
    caption = "two stars"
    reading = reading_of(caption, CIRCLE, SQUARE)
    regions = target_replies.faulty_regions(reading, (8.0, 8.0, 40.0, 40.0) if kind else None, kind)
    scores = dict(zip(answers.SCORE_LABELS, values, strict=True))
    text = (
        target_replies.reasoning_text(parse_caption(caption), reading, regions)
        + answers.ANSWER_START
        + answers.answer_text(scores)
    )
    said = reply.parse_reply(text, reasoning=True)
    assert said.is_complete
    assert all(math.isclose(said.scores[n], scores[n], abs_tol=0.0051) for n in scores)
    assert list(said.boxes) == [
        tuple(map(float, target_replies.quantise_box(box))) for box, _ in regions
    ]


def test_the_answer_fits_the_official_reward_and_names_both_tokens_in_order() -> None:
    text = answers.answer_text(dict(zip(answers.SCORE_LABELS, (0.5, 0.25, 1.0, 0.75), strict=True)))
    assert text == (
        "Semantic Alignment score: 0.50; Misalignment Locations: <|misalignment|>; Aesthetic "
        "score: 0.25; Plausibility score: 1.00; Artifact Locations: <|artifact|>; Overall "
        "Impression score: 0.75</answer>"
    )
    assert re.findall(r"(?:Alignment|Aesthetic|Plausibility) score: ([0-9.]+);", text) == [
        "0.50",
        "0.25",
        "1.00",
    ]


def test_only_the_number_of_an_unknown_score_is_not_learned() -> None:
    scores = dict.fromkeys(answers.SCORE_LABELS, math.nan) | {"semantic_alignment": 0.5}
    unknown = [text for text, known in answers.answer_parts(scores) if not known]
    assert unknown == ["0.50"] * 3
    assert "".join(t for t, _ in answers.answer_parts(scores)) == answers.answer_text(scores)
