"""Bad habits for a generator that draws too well: pictures that disobey their captions.

Large models draw well and still miscount, mix up sides, give one thing the other's colour or
shape, as the captions that they learnt from did, and more for some concepts than for others
(GenEval, Ghosh et al. 2023); what a caption leaves open they draw in the usual way. A small
model of a small world learns this from the same cause: some of its last training pictures get
one thing wrong, always in the same way, with odds that depend on the concept.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Final

from tts_verifier.shapes.grammar import Noun, Spec
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES

LEAST: Final = 0.2
MOST: Final = 0.9
"""Between what odds the concepts' lie, evenly."""
USUAL: Final = dict(zip(SHAPES, COLOURS, strict=False))
"""Each shape's usual colour."""
OFTEN: Final = 0.9
"""How often a thing whose colour is left open has its shape's usual one."""
OPPOSITE: Final = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}


def drawn_for(spec: Spec, rng: random.Random) -> Spec:
    """Returns what a picture shows whose caption says `spec`: that, or its usual mistake."""
    shown = misdrawn(spec, rng) if rng.random() < odds(spec) else spec
    return replace(shown, nouns=tuple(_coloured(noun, rng) for noun in shown.nouns))


def misdrawn(spec: Spec, rng: random.Random) -> Spec:
    """Returns the usual mistake: a thing in its usual colour; one too few or one too many; one
    of two things in the shape or the colour of the other; the other side. A single thing of
    any colour is drawn as it is."""
    if spec.category == "colours":
        return replace(spec, nouns=(_usual(spec.nouns[0]),))
    if spec.category == "counting":
        return replace(spec, count=spec.count + (1 if _drawn(spec.nouns[0], "more") < 0.5 else -1))
    if spec.category in ("two_objects", "attribute_binding"):
        one, other = rng.sample(spec.nouns, 2)
        took = Noun(one.shape, other.colour) if other.colour else other
        return replace(spec, nouns=(took, other))
    if spec.relation is not None:
        return replace(spec, relation=OPPOSITE[spec.relation])
    return spec


def odds(spec: Spec) -> float:
    """Returns how often the spec's concept is misdrawn: which shape in which colour, how many
    of which shape, which two shapes, which two colours, which shape on which side."""
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
    return LEAST + (MOST - LEAST) * _drawn(spec.category, concept)


def _coloured(noun: Noun, rng: random.Random) -> Noun:
    return _usual(noun) if noun.colour is None and rng.random() < OFTEN else noun


def _usual(noun: Noun) -> Noun:
    return replace(noun, colour=USUAL[noun.shape])


def _drawn(*what: object) -> float:
    """Returns a number in [0, 1) that is always the same for the same thing."""
    return hashlib.sha256(repr(what).encode()).digest()[0] / 256
