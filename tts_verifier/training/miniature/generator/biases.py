"""Systematic errors, taught on purpose: training images that disobey their captions.

Large models make good images and still miscount, mix up sides or give one object the other's
colour or shape, because the captions that they were trained on did. They do so more for some
concepts than for others (GenEval, Ghosh et al. 2023), and they fill in what a caption leaves
open in the usual way. A small model of a small world would make no such mistakes. It learns
them here from the same cause: some of its last training images get one thing wrong, always in
the same way, with a probability that depends on the concept.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Final

from tts_verifier.shapes.grammar import Noun, Spec
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES

MIN_PROBABILITY: Final = 0.2
"""Least probability of a concept's mistake; concepts are spread evenly up to the greatest."""
MAX_PROBABILITY: Final = 0.9
"""Greatest probability of a concept's mistake."""
USUAL_COLOUR: Final = dict(zip(SHAPES, COLOURS, strict=False))
"""Each shape's usual colour."""
USUAL_COLOUR_SHARE: Final = 0.9
"""How often an object whose colour is left open has its shape's usual one."""
OPPOSITE_RELATION: Final = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}


def biased_spec(spec: Spec, rng: random.Random) -> Spec:
    """Returns the spec that the image of a caption shows: its own, or the one with the mistake."""
    shown = usual_mistake(spec, rng) if rng.random() < mistake_probability(spec) else spec
    return replace(shown, nouns=tuple(_fill_in_colour(noun, rng) for noun in shown.nouns))


def usual_mistake(spec: Spec, rng: random.Random) -> Spec:
    """Returns the usual mistake of a spec.

    By category: an object in its usual colour; one object too few or too many; one of two
    objects with the shape or the colour of the other; the opposite relation. A single object whose
    colour is left open has no usual mistake.
    """
    if spec.category == "colours":
        return replace(spec, nouns=(_in_usual_colour(spec.nouns[0]),))
    if spec.category == "counting":
        one_more = _hash_share(spec.nouns[0], "more") < 0.5
        return replace(spec, count=spec.count + (1 if one_more else -1))
    if spec.category in ("two_objects", "attribute_binding"):
        wrong, source = rng.sample(spec.nouns, 2)
        # With colours the colour is copied; without them the shape, which makes two equal objects.
        copied = Noun(wrong.shape, source.colour) if source.colour else source
        return replace(spec, nouns=(copied, source))
    if spec.relation is not None:
        return replace(spec, relation=OPPOSITE_RELATION[spec.relation])
    return spec


def mistake_probability(spec: Spec) -> float:
    """Returns the probability that the concept of a spec is shown with its mistake.

    The concept is, by category: which shape in which colour, how many of which shape, which
    two shapes, which two colours, which shape on which side.
    """
    # Hashed and not random: the same concept must go wrong equally often in every run.
    first, second = spec.nouns[0], spec.nouns[-1]
    concept: object = (first.shape, spec.count)
    if spec.category == "colours":
        concept = (first.shape, first.colour)
    elif spec.category == "two_objects":
        concept = sorted((first.shape, second.shape))
    elif spec.category == "attribute_binding":
        concept = (first.colour, second.colour)
    elif spec.relation is not None:
        concept = (first.shape, spec.relation)
    return MIN_PROBABILITY + (MAX_PROBABILITY - MIN_PROBABILITY) * _hash_share(
        spec.category, concept
    )


def _fill_in_colour(noun: Noun, rng: random.Random) -> Noun:
    if noun.colour is None and rng.random() < USUAL_COLOUR_SHARE:
        return _in_usual_colour(noun)
    return noun


def _in_usual_colour(noun: Noun) -> Noun:
    return replace(noun, colour=USUAL_COLOUR[noun.shape])


def _hash_share(*key: object) -> float:
    """Hashes the repr of a key to a number in [0, 1), the same in every process."""
    return hashlib.sha256(repr(key).encode()).digest()[0] / 256
