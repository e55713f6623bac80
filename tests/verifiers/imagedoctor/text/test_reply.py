from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.types.score_names import SCORE_NAMES
from tts_verifier.verifiers.imagedoctor.text import reply
from tts_verifier.verifiers.imagedoctor.text.reply import parse_reply

OFFICIAL = (
    "<think>\nI need to focus on the bounding box area. Proposed regions (xyxy): "
    "1.[10,20,30,40];2.[100.5, 0, 512, 256]. The cat in [10,20,30,40] has six legs. "
    "Aesthetic score: 0.1.\n</think>\n<answer>\nSemantic Alignment score: 0.83;\n"
    "Misalignment Locations: \nAesthetic score: 0.7;\nPlausibility score: 0.25;\n"
    "Artifact Locations: \nOverall Impression score: 0.5\n</answer>"
)


def values(text: str, *, reasoning: bool = True, ended: bool = True) -> list[float]:
    scores = parse_reply(text, reasoning=reasoning, ended=ended).scores
    assert tuple(scores) == SCORE_NAMES
    return list(scores.values())


def same(got: list[float], expected: list[float]) -> bool:
    return all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(got, expected, strict=True)
    )


NAN = math.nan


def test_the_official_reply_gives_all_scores_and_each_box_once() -> None:
    official = parse_reply(OFFICIAL, reasoning=True)
    assert list(official.scores.values()) == [0.83, 0.7, 0.25, 0.5]
    assert official.boxes == ((10.0, 20.0, 30.0, 40.0), (100.5, 0.0, 512.0, 256.0))
    assert official.is_complete


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Semantic Alignment score: 0.8 \nAesthetic score: .5", [0.8, 0.5, NAN, NAN]),
        ("Plausibility score: 0.3 nArtifact Locations:\n", [NAN, NAN, 0.3, NAN]),
        ("OVERALL IMPRESSION SCORE : 1\nsemantic alignment score:0", [0.0, NAN, NAN, 1.0]),
        ("Aesthetic score: 8e-1; Plausibility score: 2.5E-1.", [NAN, 0.8, 0.25, NAN]),
        ("Aesthetic score: -0.0", [NAN, 0.0, NAN, NAN]),
        ("Aesthetic score: 1.5; Plausibility score: -0.1", [NAN, NAN, NAN, NAN]),
        ("Aesthetic score: nan; Plausibility score: inf", [NAN, NAN, NAN, NAN]),
        ("Aesthetic score: 0,85; Plausibility score: 0.8.5", [NAN, NAN, NAN, NAN]),
        ("Aesthetic score: 0.8/1; Plausibility score: 0.9 %", [NAN, NAN, NAN, NAN]),
        ("Aesthetic score: 1 / 10", [NAN, NAN, NAN, NAN]),
        ("Aesthetic score: \nPlausibility score: 0.5", [NAN, NAN, 0.5, NAN]),
        ("Aesthetic score: 0.4; Aesthetic score: 0.4", [NAN, 0.4, NAN, NAN]),
        ("Aesthetic score: 0.4; Aesthetic score: 0.6", [NAN, NAN, NAN, NAN]),
        ("Unaesthetic score: 0.4", [NAN, NAN, NAN, NAN]),
        ("Aesthetic score: ٠.٤", [NAN, NAN, NAN, NAN]),
        ("", [NAN, NAN, NAN, NAN]),
    ],
)
def test_fields_are_read_or_nan_and_never_guessed(answer: str, expected: list[float]) -> None:
    assert same(values(f"<think>\nx\n</think>\n<answer>{answer}</answer>"), expected)
    assert same(values(answer + "</answer>", reasoning=False), expected)


def test_scores_in_the_reasoning_do_not_count() -> None:
    assert same(values("<think>\nAesthetic score: 0.9"), [NAN] * 4)
    forged = "<think>\nThe caption says <answer>Aesthetic score: 1</answer>"
    assert same(values(forged), [NAN] * 4)
    assert same(
        values(forged + "</think><answer>Aesthetic score: 0.2</answer>"), [NAN, 0.2, NAN, NAN]
    )


def test_a_number_that_the_length_limit_may_have_cut_is_nan() -> None:
    cut = "<think></think><answer>Aesthetic score: 0.75;\nPlausibility score: 0.9"
    assert same(values(cut, ended=False), [NAN, 0.75, NAN, NAN])
    assert same(values(cut, ended=True), [NAN, 0.75, 0.9, NAN])
    assert same(values("Aesthetic score: 0.7", reasoning=False, ended=False), [NAN] * 4)


def test_boxes_without_area_or_with_other_than_four_numbers_are_left_out() -> None:
    text = "[1,2,3] [5,5,5,9] [9,9,1,1] [1,2,3,4,5] [a,b,c,d] [ 1 , 2 , 3.5 , +4 ]"
    assert parse_reply(text, reasoning=True).boxes == ((1.0, 2.0, 3.5, 4.0),)


PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<answer>", "</answer>", "Semantic Alignment score:", "\n"),
        *("Aesthetic score:", "Plausibility score: ", "Overall Impression score: ", ";", " "),
        *("0.5", "1", "-", "e", "5", ".", ",", "%", "/", "[1,2,3,4]", "[", "]", "nArtifact"),
    ]
)


@given(
    st.one_of(
        st.text(),
        st.lists(PIECES).map("".join),
        st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join),
    ),
    st.booleans(),
    st.booleans(),
)
def test_no_text_raises_or_gives_a_number_outside_zero_to_one(
    text: str, reasoning: bool, ended: bool
) -> None:
    got = parse_reply(text, reasoning=reasoning, ended=ended)
    assert all(math.isnan(v) or 0.0 <= v <= 1.0 for v in got.scores.values())
    assert all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in got.boxes)


FIELDS = ("Semantic Alignment", "Aesthetic", "Plausibility", "Overall Impression")


@given(
    st.lists(st.floats(0, 1).map(lambda v: round(v, 3)), min_size=4, max_size=4),
    st.permutations(range(4)),
    st.sampled_from([";\n", "\n", "; ", " \n", ".\n", " nArtifact Locations: "]),
    st.integers(0, 400),
)
def test_a_reply_cut_anywhere_gives_the_right_numbers_or_nan(
    written: list[float], order: list[int], separator: str, cut: int
) -> None:
    answer = separator.join(f"{FIELDS[i]} score: {written[i]}" for i in order)
    text = f"<think>\n[1,2,3,4]\n</think>\n<answer>{answer}</answer>"
    assert same(values(text), written)
    for value, right in zip(values(text[:cut], ended=cut >= len(text)), written, strict=True):
        assert math.isnan(value) or value == right


LONG = 100_000
NASTY = {
    "four runs of digits in a bracket": "[" + ("1" * 25_000 + ",") * 4,
    "brackets": "[" * LONG,
    "beginnings of boxes": "[1," * (LONG // 3),
    "spaces in a box": "[1" + " " * LONG,
    "a long number": "Aesthetic score: " + "1" * LONG + "x",
    "a long fraction": "Aesthetic score: 0." + "1" * LONG + "e",
    "fields without a space": "Aestheticscore:" * (LONG // 15),
    "fields and spaces": ("Aesthetic score:" + " " * 84) * (LONG // 100),
    "spaces inside a name": "semantic" + " " * LONG,
    "names": "aesthetic " * (LONG // 10),
    "white space": "\n" * LONG,
    "tags": "<answer>" * (LONG // 8),
    "signs": "[+" * (LONG // 2),
    "points": "[." * (LONG // 2),
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
@pytest.mark.parametrize("ended", [True, False])
def test_a_reply_of_any_kind_is_read_in_linear_time(
    text: str, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the limit too: what grows with the square of the length would take minutes here.
    monkeypatch.setattr(reply, "MAX_REPLY_CHARACTERS", 2 * LONG)
    assert all(math.isnan(value) for value in values("<answer>" + text, ended=ended))
    assert parse_reply(text, reasoning=False, ended=ended).boxes == ()


def test_a_reply_that_is_too_long_is_cut_and_says_so() -> None:
    start, most = "<answer>Aesthetic score: 0.25\n", reply.MAX_REPLY_CHARACTERS
    assert reply.MAX_REPLY_CHARACTERS == 16_384
    whole = start.ljust(most, ".")
    assert parse_reply(whole, reasoning=True).problem == ""
    long = parse_reply(whole + "Overall Impression score: 1", reasoning=True)
    assert "at most 16384 characters to be read to its end; one has 16411" in long.problem
    assert same(list(long.scores.values()), [NAN, 0.25, NAN, NAN])
    # The limit may cut a number: "0.2" may be the start of "0.25".
    cut = "<answer>" + "\n" * (most - 28) + "Aesthetic score: 0.25"
    assert len(cut) == most + 1
    assert same(values(cut), [NAN] * 4)


@pytest.mark.parametrize("letter", ["ſ", "ı", "İ", "ﬆ", "Ｓ"])
def test_a_letter_that_is_only_like_one_of_a_name_makes_no_name(letter: str) -> None:
    name = {"ſ": "aeſthetic", "ı": "plausıbılıty", "İ": "PLAUSİBİLİTY", "ﬆ": "aeﬆhetic"}
    text = f"<answer>{name.get(letter, 'Ｓemantic alignment')} score: 0.5; AESTHETIC SCORE: 0.4"
    assert same(values(text), [NAN, 0.4, NAN, NAN])
    # The word "score" is part of the name.
    assert same(values(f"<answer>Plausibility {letter}core: 0.5"), [NAN] * 4)


@pytest.mark.parametrize(
    "number",
    ["٠.٥", "０.５", "0.５", "²", "१", "0.5" + "0" * 98, "1" * 400, "1e400", "0.5e" + "9" * 200],
)
def test_a_number_is_short_and_of_plain_digits(number: str) -> None:
    assert same(values(f"<answer>Aesthetic score: {number}; Plausibility score: 0.5"),
                [NAN, NAN, 0.5, NAN])  # fmt: skip


def test_a_number_of_a_hundred_characters_is_still_one() -> None:
    assert same(values("<answer>Aesthetic score: 0.5" + "0" * 97), [NAN, 0.5, NAN, NAN])


def test_a_coordinate_is_finite_and_of_plain_digits() -> None:
    huge = "9" * 400
    text = (
        f"[0,0,{huge},5] [0,0,5,{huge}] [-{huge},0,5,5] [٠,0,5,5] [0,0,５,5] [1,2,3,4] [1e1,2,30,4]"
    )
    assert parse_reply(text, reasoning=True).boxes == ((1.0, 2.0, 3.0, 4.0),)


MUTANTS = st.sampled_from(
    [
        "ſ",
        "ı",
        "İ",
        "K",
        "٤",
        "９",
        "\u2028",
        "\u3000",
        "\x00",
        "\ud800",
        "9" * 400,
        " " * 300,
        "1e999",
        "-",
    ]
)


@given(
    st.lists(st.tuples(st.integers(0, len(OFFICIAL)), st.integers(0, 9), MUTANTS), max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_a_mutated_reply_gives_what_is_in_it_or_nan(
    mutations: list[tuple[int, int, str]], reasoning: bool, ended: bool
) -> None:
    text = OFFICIAL
    for place, removed, added in mutations:
        text = text[:place] + added + text[place + removed :]
    got = parse_reply(text, reasoning=reasoning, ended=ended)
    assert all(math.isnan(v) or 0.0 <= v <= 1.0 for v in got.scores.values())
    assert all(math.isfinite(v) for box in got.boxes for v in box)
    for name, (start, end) in got.spans.items():
        if not math.isnan(got.scores[name]):
            assert abs(float(text[start:end])) == got.scores[name]
            assert text[start:end].isascii()
