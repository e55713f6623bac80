import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.errors import InputError
from tts_verifier.shapes.captions import all_specs
from tts_verifier.shapes.grammar import (
    Constraint,
    Noun,
    Spec,
    constraints,
    parse_caption,
    phrase,
    variants,
)

SPECS = list(all_specs())


@given(st.sampled_from(SPECS), st.integers(0, 9))
def test_parse_undoes_phrase(spec, variant):
    assert parse_caption(phrase(spec, variant)) == spec


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
    assert parse_caption(text) == spec


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
        parse_caption(text)
    assert repr(text) in str(error.value)


def test_constraints_of_a_position_caption():
    found = constraints(parse_caption("a red circle left of a square"))
    kinds = [(c.kind, c.noun) for c in found]
    assert kinds == [
        ("object", 0),
        ("colour", 0),
        ("object", 1),
        ("relation", None),
        ("nothing_else", None),
    ]
    assert Constraint("count", 0) in constraints(parse_caption("two circles"))
