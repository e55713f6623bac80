from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.errors import InputError
from tts_verifier.shapes.captions import all_specs, captions, is_held_out
from tts_verifier.shapes.grammar import (
    Constraint,
    Noun,
    Spec,
    constraints,
    parse,
    phrase,
    variants,
)
from tts_verifier.shapes.vocabulary import CATEGORIES

SPECS = list(all_specs())


@given(st.sampled_from(SPECS), st.integers(0, 9))
def test_parse_undoes_phrase(spec, variant):
    assert parse(phrase(spec, variant)) == spec


def test_the_world_has_about_a_hundred_thousand_captions():
    texts = {phrase(spec, v) for spec in SPECS for v in range(variants(spec))}
    assert len(texts) == sum(variants(spec) for spec in SPECS) == 106_830
    assert max(len(text.split()) for text in texts) <= 16


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a ring", Spec("single_object", (Noun("ring"),))),
        ("  An ORANGE   star. ", Spec("colours", (Noun("star", "orange"),))),
        ("four crosses", Spec("counting", (Noun("cross"),), count=4)),
        ("a photo of two red rings", Spec("counting", (Noun("ring", "red"),), count=2)),
        ("a circle and a square", Spec("two_objects", (Noun("circle"), Noun("square")))),
        (
            "a red circle on top of a square",
            Spec("position", (Noun("circle", "red"), Noun("square")), relation="above"),
        ),
    ],
)
def test_captions_mean_what_they_say(text, spec):
    assert parse(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "circles",
        "one circle",
        "five red circles",
        "a circle and a circle",
        "a red circle and a square",
        "a red circle and a red square",
    ],
)
def test_a_caption_outside_the_grammar_is_shown(text):
    with pytest.raises(InputError) as error:
        parse(text)
    assert repr(text) in str(error.value)


def test_constraints_of_a_position_caption():
    found = constraints(parse("a red circle left of a square"))
    kinds = [(c.kind, c.noun) for c in found]
    assert kinds == [
        ("object", 0),
        ("colour", 0),
        ("object", 1),
        ("relation", None),
        ("nothing_else", None),
    ]
    assert Constraint("count", 0) in constraints(parse("two circles"))


def test_captions_are_distinct_deterministic_and_in_equal_shares():
    first = captions(120, seed=3)
    assert first == captions(120, seed=3) != captions(120, seed=4)
    assert len(set(first)) == 120
    counts = [sum(parse(c).category == category for c in first) for category in CATEGORIES]
    assert counts == [20] * 6


def test_held_out_captions_are_not_trained_on():
    pairs = ("two_objects", "position", "attribute_binding")
    held = [s for s in map(parse, captions(90, 0, split="held_out")) if s.category in pairs]
    trained = [s for s in map(parse, captions(90, 0, split="train")) if s.category in pairs]
    assert len(held) == 45
    assert all(map(is_held_out, held))
    assert not any(map(is_held_out, trained))


@pytest.mark.parametrize(
    ("n", "split", "most"),
    [(0, "all", "106,830"), (-1, "train", "93,395"), (14_516, "held_out", "14,515")],
)
def test_more_captions_than_a_split_has_are_refused(n, split, most):
    with pytest.raises(InputError, match=rf"from 1 to {most}, .* split '{split}'; got {n}"):
        captions(n, 0, split=split)


def test_a_category_that_is_used_up_leaves_its_turns_to_the_others():
    counts = Counter(parse(c).category for c in captions(400, 1, split="held_out"))
    assert counts["single_object"] == 30
    assert counts["two_objects"] == 25
    assert min(counts[c] for c in ("colours", "counting", "position", "attribute_binding")) > 80


def test_a_misspelt_split_is_refused():
    with pytest.raises(InputError, match="all, train, held_out; got 'heldout'"):
        captions(3, 0, split="heldout")
