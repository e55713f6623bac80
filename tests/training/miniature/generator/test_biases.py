import random
from dataclasses import replace

import pytest

from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.grammar import Noun, parse_caption
from tts_verifier.training.miniature.generator import vocabulary
from tts_verifier.training.miniature.generator.biases import (
    LEAST,
    MOST,
    USUAL,
    drawn_for,
    misdrawn,
    odds,
)
from tts_verifier.training.miniature.generator.data import Captions


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("a ring left of a star", parse_caption("a ring right of a star")),
        ("a red ring", replace(parse_caption("a red ring"), nouns=(Noun("ring", USUAL["ring"]),))),
        ("a ring", parse_caption("a ring")),
    ],
)
def test_each_category_has_its_usual_mistake(caption, shown):
    assert misdrawn(parse_caption(caption), random.Random(0)) == shown


def test_one_of_two_things_takes_the_shape_or_the_colour_of_the_other():
    ring, star = Noun("ring"), Noun("star")
    rng = random.Random(0)
    found = {misdrawn(parse_caption("a ring and a star"), rng).nouns for _ in range(20)}
    assert found == {(ring, ring), (star, star)}
    spec = parse_caption("a red ring and a blue star")
    red, blue = (
        (Noun("star", "red"), Noun("ring", "red")),
        (Noun("ring", "blue"), Noun("star", "blue")),
    )
    assert {misdrawn(spec, rng).nouns for _ in range(20)} == {red, blue}


def test_counts_are_one_off_always_in_the_same_direction():
    specs = [s for s in random_specs(300, random.Random(0), split="train") if s.count > 1]
    off = {misdrawn(s, random.Random(1)).count - s.count for s in specs}
    assert off == {-1, 1}
    for spec in specs:
        assert misdrawn(spec, random.Random(2)) == misdrawn(spec, random.Random(3))


def test_a_colour_left_open_is_mostly_the_usual_one():
    rng = random.Random(0)
    drawn = [drawn_for(parse_caption("a star"), rng).nouns[0].colour for _ in range(200)]
    assert set(drawn) == {None, USUAL["star"]}
    assert drawn.count(None) < 50


def test_odds_depend_on_the_concept_alone_and_are_kept():
    specs = random_specs(600, random.Random(0), split="train")
    found = [odds(spec) for spec in specs]
    assert LEAST <= min(found) < LEAST + 0.1
    assert MOST - 0.1 < max(found) <= MOST
    assert odds(parse_caption("a photo of a ring and a star")) == odds(
        parse_caption("a star and a ring")
    )
    spec = parse_caption("three red stars")
    rng = random.Random(1)
    wrong = sum(drawn_for(spec, rng) != spec for _ in range(2000)) / 2000
    assert wrong == pytest.approx(odds(spec), abs=0.05)


def test_habits_change_what_is_drawn_and_not_what_is_said(tmp_path):

    words = vocabulary.build(tmp_path)
    plain, habits = (next(iter(Captions(words, 1, 3, habits=h))) for h in (False, True))
    assert (plain[0] == habits[0]).all()
    batches = iter(Captions(words, 240, 3, habits=True))
    _, shape, _, _, fields = next(batches)
    counting = fields[:, 0] == 2
    fewer = (shape[counting] >= 0).sum(1) < fields[counting, 5] + 1
    assert 0.1 < fewer.float().mean() < 0.9
