import random
from dataclasses import replace

import pytest

from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.grammar import Noun, parse_caption
from tts_verifier.training.miniature.generator.biases import (
    MAX_PROBABILITY,
    MIN_PROBABILITY,
    USUAL_COLOUR,
    biased_spec,
    mistake_probability,
    usual_mistake,
)
from tts_verifier.training.miniature.generator.data import CaptionDataset
from tts_verifier.training.miniature.generator.vocabulary import build_clip_tokenizer


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("a ring left of a star", parse_caption("a ring right of a star")),
        (
            "a red ring",
            replace(parse_caption("a red ring"), nouns=(Noun("ring", USUAL_COLOUR["ring"]),)),
        ),
        ("a ring", parse_caption("a ring")),
    ],
)
def test_each_category_has_its_usual_mistake(caption, shown):
    assert usual_mistake(parse_caption(caption), random.Random(0)) == shown


def test_one_of_two_things_takes_the_shape_or_the_colour_of_the_other():
    ring, star = Noun("ring"), Noun("star")
    rng = random.Random(0)
    found = {usual_mistake(parse_caption("a ring and a star"), rng).nouns for _ in range(20)}
    assert found == {(ring, ring), (star, star)}
    spec = parse_caption("a red ring and a blue star")
    red, blue = (
        (Noun("star", "red"), Noun("ring", "red")),
        (Noun("ring", "blue"), Noun("star", "blue")),
    )
    assert {usual_mistake(spec, rng).nouns for _ in range(20)} == {red, blue}


def test_counts_are_one_off_always_in_the_same_direction():
    specs = [s for s in random_specs(300, random.Random(0), split="train") if s.count > 1]
    off = {usual_mistake(s, random.Random(1)).count - s.count for s in specs}
    assert off == {-1, 1}
    for spec in specs:
        assert usual_mistake(spec, random.Random(2)) == usual_mistake(spec, random.Random(3))


def test_a_colour_left_open_is_mostly_the_usual_one():
    rng = random.Random(0)
    colours = [biased_spec(parse_caption("a star"), rng).nouns[0].colour for _ in range(200)]
    assert set(colours) == {None, USUAL_COLOUR["star"]}
    assert colours.count(None) < 50


def test_the_probability_depends_on_the_concept_alone_and_is_kept():
    specs = random_specs(600, random.Random(0), split="train")
    probabilities = [mistake_probability(spec) for spec in specs]
    assert MIN_PROBABILITY <= min(probabilities) < MIN_PROBABILITY + 0.1
    assert MAX_PROBABILITY - 0.1 < max(probabilities) <= MAX_PROBABILITY
    assert mistake_probability(
        parse_caption("a photo of a ring and a star")
    ) == mistake_probability(parse_caption("a star and a ring"))
    spec = parse_caption("three red stars")
    rng = random.Random(1)
    wrong = sum(biased_spec(spec, rng) != spec for _ in range(2000)) / 2000
    assert wrong == pytest.approx(mistake_probability(spec), abs=0.05)


def test_biases_change_what_is_shown_and_not_what_is_said(tmp_path):
    tokenizer = build_clip_tokenizer(tmp_path)
    plain, biased = (next(iter(CaptionDataset(tokenizer, 1, 3, biased=b))) for b in (False, True))
    assert (plain.ids == biased.ids).all()
    batch = next(iter(CaptionDataset(tokenizer, 240, 3, biased=True)))
    counting = batch.fields[:, 0] == 2
    fewer = (batch.shape[counting] >= 0).sum(1) < batch.fields[counting, 5] + 1
    assert 0.1 < fewer.float().mean() < 0.9
