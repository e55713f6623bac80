"""All captions of the miniature world, which of them are held out, and random samples of them.

Training never sees a held-out spec: about one in eight of the specs of two objects, position
and attribute binding, chosen by a hash of their meaning. Single objects, colours and counting
have too few specs for that (6, 48 and 162). Both splits share their captions, and only their
images are held out, by other seeds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from functools import cache
from itertools import cycle, product
from typing import Final, Literal, get_args

from tts_verifier.errors import InputError
from tts_verifier.shapes.grammar import Noun, Spec, random_phrase, variants
from tts_verifier.shapes.vocabulary import CATEGORIES, COLOURS, COUNTS, RELATIONS, SHAPES

Split = Literal["all", "train", "held_out"]

SHARED_CATEGORIES: Final = ("single_object", "colours", "counting")
"""The categories whose captions are in both splits."""
HELD_OUT_ONE_IN: Final = 8
"""One spec in this many is held out, in the other categories."""
TRIES: Final = 50
"""How often `captions` tries to find a new caption of a category before it moves on.

Almost all captions of the category may be taken already.
"""


def is_held_out(spec: Spec) -> bool:
    """Tells whether training never sees a spec."""
    if spec.category in SHARED_CATEGORIES:
        return False
    # Not `hash`, which Python salts anew for text in every process.
    return hashlib.sha256(repr(spec).encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def all_specs() -> Iterator[Spec]:
    """Yields every spec of the world, category by category."""
    any_colour: tuple[str | None, ...] = (None, *COLOURS)
    for shape in SHAPES:
        yield Spec("single_object", (Noun(shape),))
        for name in COLOURS:
            yield Spec("colours", (Noun(shape, name),))
        for colour, count in product(any_colour, range(2, len(COUNTS) + 1)):
            yield Spec("counting", (Noun(shape, colour),), count=count)
    for first, second in product(SHAPES, SHAPES):
        if first == second:
            continue
        yield Spec("two_objects", (Noun(first), Noun(second)))
        # Two objects of one colour cannot show whether a colour is bound to the right object.
        for colour_1, colour_2 in product(COLOURS, COLOURS):
            if colour_1 != colour_2:
                yield Spec("attribute_binding", (Noun(first, colour_1), Noun(second, colour_2)))
        for a, b, relation in product(any_colour, any_colour, RELATIONS):
            yield Spec("position", (Noun(first, a), Noun(second, b)), relation=relation)


def random_specs(n: int, rng: random.Random, *, split: Split = "all") -> list[Spec]:
    """Picks `n` random specs, the six categories in equal shares, in random order.

    Raises:
        InputError: `n` is not positive.
    """
    if n < 1:
        raise InputError(f"n must be a positive integer, got {n!r}.")
    categories = [c for c, _ in zip(cycle(CATEGORIES), range(n), strict=False)]
    rng.shuffle(categories)
    return [_random_spec_of(category, rng, split) for category in categories]


def captions(n: int, seed: int, *, split: Split = "all") -> list[str]:
    """Picks `n` distinct random captions, the six categories in turn.

    Args:
        n: how many. A category that runs out leaves its turns to the others: `single_object`
            has 30 captions in all, `two_objects` has 25 held-out ones.
        seed: the same seed gives the same captions.
        split: `held_out` leaves out the captions that the bundled models were trained on (see
            the module's docstring).

    Raises:
        InputError: `split` is not one of the three, or `n` is not positive or exceeds the
            number of captions of the split.
    """
    if split not in get_args(Split):
        raise InputError(f"split must be one of {', '.join(get_args(Split))}; got {split!r}.")
    left = dict(_caption_counts(split))
    total = sum(left.values())
    if not 1 <= n <= total:
        raise InputError(
            f"n must be from 1 to {total:,}, the distinct captions of split {split!r}; got {n!r}."
        )
    rng = random.Random(seed)
    chosen: dict[str, None] = {}  # a dict and not a set, because it keeps the order
    turns = cycle(CATEGORIES)
    while len(chosen) < n:
        category = next(turns)
        for _ in range(TRIES if left[category] else 0):
            text = random_phrase(_random_spec_of(category, rng, split), rng)
            if text not in chosen:
                chosen[text] = None
                left[category] -= 1
                break
    return list(chosen)


@cache
def _caption_counts(split: Split) -> dict[str, int]:
    """Returns the number of captions of each category in a split."""
    counts = dict.fromkeys(CATEGORIES, 0)
    for spec in all_specs():
        if _is_in_split(spec, split):
            counts[spec.category] += variants(spec)
    return counts


def _is_in_split(spec: Spec, split: Split) -> bool:
    if split == "all" or spec.category in SHARED_CATEGORIES:
        return True
    return is_held_out(spec) == (split == "held_out")


def _random_spec_of(category: str, rng: random.Random, split: Split) -> Spec:
    while True:
        spec = _random_spec(category, rng)
        if _is_in_split(spec, split):
            return spec


def _random_spec(category: str, rng: random.Random) -> Spec:
    first, second = rng.sample(SHAPES, 2)
    a, b = rng.sample(list(COLOURS), 2)
    if category == "single_object":
        return Spec(category, (Noun(first),))
    if category == "colours":
        return Spec(category, (Noun(first, a),))
    if category == "counting":
        colour = rng.choice([None, a, a])
        return Spec(category, (Noun(first, colour),), count=rng.randint(2, len(COUNTS)))
    if category == "two_objects":
        return Spec(category, (Noun(first), Noun(second)))
    if category == "attribute_binding":
        return Spec(category, (Noun(first, a), Noun(second, b)))
    # A position may have two objects of one colour: their shapes tell them apart.
    any_colour = rng.choice(list(COLOURS))
    nouns = (Noun(first, rng.choice([None, a])), Noun(second, rng.choice([None, any_colour])))
    return Spec(category, nouns, relation=rng.choice(RELATIONS))
