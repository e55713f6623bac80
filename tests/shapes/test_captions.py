from collections import Counter

import pytest

from tts_verifier.errors import InputError
from tts_verifier.shapes.captions import captions, is_held_out
from tts_verifier.shapes.grammar import (
    parse_caption,
)
from tts_verifier.shapes.vocabulary import CATEGORIES


def test_captions_are_distinct_deterministic_and_in_equal_shares():
    first = captions(120, seed=3)
    assert first == captions(120, seed=3) != captions(120, seed=4)
    assert len(set(first)) == 120
    counts = [sum(parse_caption(c).category == category for c in first) for category in CATEGORIES]
    assert counts == [20] * 6


def test_held_out_captions_are_not_trained_on():
    pairs = ("two_objects", "position", "attribute_binding")
    held = [s for s in map(parse_caption, captions(90, 0, split="held_out")) if s.category in pairs]
    trained = [s for s in map(parse_caption, captions(90, 0, split="train")) if s.category in pairs]
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
    counts = Counter(parse_caption(c).category for c in captions(400, 1, split="held_out"))
    assert counts["single_object"] == 30
    assert counts["two_objects"] == 25
    assert min(counts[c] for c in ("colours", "counting", "position", "attribute_binding")) > 80


def test_a_misspelt_split_is_refused():
    with pytest.raises(InputError, match="all, train, held_out; got 'heldout'"):
        captions(3, 0, split="heldout")
