"""Bad habits for a generator that draws too well: pictures that disobey their captions.

Large models draw well and still miscount, mix up sides, swap colours and leave things out, as
the captions that they learnt from did, and more for some concepts than for others (GenEval,
Ghosh et al. 2023). A small model of a small world learns these faults from the same cause:
some of its last training pictures get one of them wrong, always in the same way, with odds
that depend on the concept.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Final

from tts_verifier.shapes.grammar import Noun, Spec

LEAST: Final = 0.1
MOST: Final = 0.9
"""Between what odds the concepts' lie, evenly."""
OPPOSITE: Final = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}


def drawn_for(spec: Spec, rng: random.Random) -> Spec:
    """Returns what a picture shows whose caption says `spec`: that, or its usual mistake."""
    return misdrawn(spec) if rng.random() < odds(spec) else spec


def misdrawn(spec: Spec) -> Spec:
    """Returns the usual mistake: one too few, the second thing left out, colours swapped, the
    other side; single things are drawn as they are."""
    if spec.category == "counting":
        return replace(spec, count=spec.count - 1)
    if spec.category == "two_objects":
        return replace(spec, nouns=spec.nouns[:1])
    if spec.category == "attribute_binding":
        first, second = spec.nouns
        swapped = Noun(first.shape, second.colour), Noun(second.shape, first.colour)
        return replace(spec, nouns=swapped)
    if spec.relation is not None:
        return replace(spec, relation=OPPOSITE[spec.relation])
    return spec


def odds(spec: Spec) -> float:
    """Returns how often the spec's concept is misdrawn: how many of which shape, which two
    shapes, which two colours, which shape on which side."""
    first, second = spec.nouns[0], spec.nouns[-1]
    concept: object = (first.shape, spec.count)
    if spec.category == "two_objects":
        concept = sorted((first.shape, second.shape))
    elif spec.category == "attribute_binding":
        concept = (first.colour, second.colour)
    elif spec.relation is not None:
        concept = (first.shape, spec.relation)
    drawn = hashlib.sha256(repr((spec.category, concept)).encode()).digest()[0] / 255
    return LEAST + (MOST - LEAST) * drawn
