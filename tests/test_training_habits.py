import random
from dataclasses import replace

import pytest

from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.grammar import parse
from tts_verifier.training.generator_data import Captions
from tts_verifier.training.habits import LEAST, MOST, drawn_for, misdrawn, odds


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("four red stars", replace(parse("four red stars"), count=3)),
        ("a red ring and a blue star", parse("a blue ring and a red star")),
        ("a ring left of a star", parse("a ring right of a star")),
        ("a red ring", parse("a red ring")),
    ],
)
def test_each_category_has_its_usual_mistake(caption, shown):
    assert misdrawn(parse(caption)) == shown


def test_the_second_thing_is_left_out():
    assert misdrawn(parse("a ring and a star")).nouns == parse("a ring").nouns


def test_odds_depend_on_the_concept_alone_and_are_kept():
    specs = random_specs(600, random.Random(0), split="train")
    found = [odds(spec) for spec in specs]
    assert LEAST <= min(found) < 0.2
    assert 0.8 < max(found) <= MOST
    assert odds(parse("a photo of a ring and a star")) == odds(parse("a star and a ring"))
    spec = parse("three red stars")
    rng = random.Random(1)
    wrong = sum(drawn_for(spec, rng) != spec for _ in range(2000)) / 2000
    assert wrong == pytest.approx(odds(spec), abs=0.05)


def test_habits_change_what_is_drawn_and_not_what_is_said(tmp_path):
    from tts_verifier.training import generator_words

    words = generator_words.build(tmp_path)
    plain, habits = (next(iter(Captions(words, 1, 3, habits=h))) for h in (False, True))
    assert (plain[0] == habits[0]).all()
    batches = iter(Captions(words, 240, 3, habits=True))
    _, shape, _, _, fields = next(batches)
    counting = fields[:, 0] == 2
    fewer = (shape[counting] >= 0).sum(1) < fields[counting, 5] + 1
    assert 0.1 < fewer.float().mean() < 0.9
