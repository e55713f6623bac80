"""The captions of the miniature world: their meaning, their wording and their constraints.

The six categories follow GenEval (Ghosh et al. 2023): a single object, two objects, counting,
colours, position, attribute binding. `phrase` turns a meaning into a caption and
`parse_caption` turns the caption back.

An image satisfies its caption when it shows exactly the objects that the caption names and
nothing else; attributes that the caption leaves open are free. "left of" and the other
relations compare centres: they must be more than `RELATION_MARGIN` pixels (of 128) apart in the
direction that the relation names.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final, Literal

from tts_verifier.errors import InputError
from tts_verifier.shapes.vocabulary import COLOURS, COUNTS, RELATIONS, SHAPES

RELATION_MARGIN: Final = 10.0
"""A relation holds when the centres are more than this far apart along its axis, in pixels of
128."""

PREFIXES: Final = ("", "a picture of ", "an image of ", "a drawing of ", "a photo of ")
LONG_RELATIONS: Final = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "on top of",
    "below": "underneath",
}
PLURAL: Final = {s: s + ("es" if s.endswith("s") else "s") for s in SHAPES}
"""Shape -> the word for several of it."""
VARIANTS: Final = 2 * len(PREFIXES)
"""The number of phrasings of a spec with a relation; a spec without one has half as many."""

ConstraintKind = Literal["object", "colour", "count", "relation", "nothing_else"]

# `captions.is_held_out` hashes the repr of a Spec. Renaming Spec, Noun or one of their fields
# would therefore move captions between the training split and the held-out split.


@dataclass(frozen=True, slots=True)
class Noun:
    """A kind of object."""

    shape: str
    """One of SHAPES."""
    colour: str | None = None
    """One of COLOURS; None = any colour."""


@dataclass(frozen=True, slots=True)
class Spec:
    """The meaning of a caption."""

    category: str
    """One of CATEGORIES."""
    nouns: tuple[Noun, ...]
    """One noun, or two of different shape."""
    count: int = 1
    """The number of objects of the first noun; above 1 only in the category `counting`."""
    relation: str | None = None
    """Where the first noun is, seen from the second; one of RELATIONS or None."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One requirement of a spec that can be checked by itself."""

    kind: ConstraintKind
    """What must hold."""
    noun: int | None = None
    """The index of the noun that it concerns; None for `relation` and `nothing_else`."""


def constraints(spec: Spec) -> tuple[Constraint, ...]:
    """Lists the constraints of a spec in a fixed order.

    Each noun has its object and, if named, its colour; then come the count, the relation and
    that nothing else is shown.
    """
    required: list[Constraint] = []
    for index, noun in enumerate(spec.nouns):
        required.append(Constraint("object", index))
        if noun.colour is not None:
            required.append(Constraint("colour", index))
    if spec.category == "counting":
        required.append(Constraint("count", 0))
    if spec.relation is not None:
        required.append(Constraint("relation"))
    return (*required, Constraint("nothing_else"))


def phrase(spec: Spec, variant: int = 0) -> str:
    """Words a spec as a caption; `variant` in [0, VARIANTS) picks one of its phrasings."""
    prefix = PREFIXES[variant % len(PREFIXES)]
    first = _with_article(spec.nouns[0])
    if spec.count > 1:
        first = f"{COUNTS[spec.count - 1]} {_noun_text(spec.nouns[0], plural=True)}"
    if len(spec.nouns) == 1:
        return prefix + first
    joint = "and"
    if spec.relation is not None:
        # The variants go through all prefixes with the short form first, then with the long one.
        long = variant // len(PREFIXES) % 2 == 1
        joint = LONG_RELATIONS[spec.relation] if long else spec.relation
    return f"{prefix}{first} {joint} {_with_article(spec.nouns[1])}"


def variants(spec: Spec) -> int:
    """Returns the number of different phrasings of a spec."""
    return VARIANTS if spec.relation is not None else len(PREFIXES)


def random_phrase(spec: Spec, rng: random.Random) -> str:
    """Words a spec in one of its phrasings, all equally likely."""
    return phrase(spec, rng.randrange(variants(spec)))


def parse_caption(text: str) -> Spec:
    """Reads a caption; case, spacing and a final full stop do not matter.

    Raises:
        InputError: the caption is outside the grammar; the message quotes it.
    """
    caption = " ".join(text.lower().split()).removesuffix(".").strip()
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise InputError(
            "A caption of the shapes world names one kind of object or two, such as "
            f"'a red circle left of a square' or 'three blue stars'; got {text!r}."
        )
    part = match.groupdict()
    if part["counted"]:
        noun = Noun(_SINGULAR[part["counted"]], part["colour0"])
        return Spec("counting", (noun,), count=COUNTS.index(part["count"]) + 1)
    first = Noun(part["shape1"], part["colour1"])
    if part["joint"] is None:
        return Spec("single_object" if first.colour is None else "colours", (first,))
    second = Noun(part["shape2"], part["colour2"])
    return _spec_of_two(first, second, part["joint"], text)


def _spec_of_two(first: Noun, second: Noun, joint: str, text: str) -> Spec:
    if first.shape == second.shape:
        raise InputError(f"The two objects of a caption must differ in shape; got {text!r}.")
    if joint != "and":
        return Spec("position", (first, second), relation=_RELATION[joint])
    if (first.colour is None) != (second.colour is None):
        raise InputError(
            f"Two objects joined by 'and' have both a colour or neither; got {text!r}."
        )
    if first.colour is None:
        return Spec("two_objects", (first, second))
    if first.colour == second.colour:
        raise InputError(f"Two coloured objects joined by 'and' differ in colour; got {text!r}.")
    return Spec("attribute_binding", (first, second))


def _noun_text(noun: Noun, *, plural: bool = False) -> str:
    shape = PLURAL[noun.shape] if plural else noun.shape
    return shape if noun.colour is None else f"{noun.colour} {shape}"


def _with_article(noun: Noun) -> str:
    text = _noun_text(noun)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


_SINGULAR: Final = {plural: s for s, plural in PLURAL.items()}
_RELATION: Final = {r: r for r in RELATIONS} | {long: r for r, long in LONG_RELATIONS.items()}


def _caption_pattern() -> re.Pattern[str]:
    """Builds the pattern of a caption from the vocabulary, with a named group for each part."""
    colour, shape = "|".join(COLOURS), "|".join(SHAPES)
    prefix = "|".join(p.strip() for p in PREFIXES if p)
    joints = "|".join(["and", *_RELATION])

    def noun_pattern(index: int) -> str:
        return rf"an? (?:(?P<colour{index}>{colour}) )?(?P<shape{index}>{shape})"

    plural = "|".join(_SINGULAR)
    # From "two" on: one object is worded with an article.
    counted = rf"(?P<count>{'|'.join(COUNTS[1:])}) (?:(?P<colour0>{colour}) )?(?P<counted>{plural})"
    return re.compile(
        rf"(?:(?:{prefix}) )?"
        rf"(?:{counted}|{noun_pattern(1)}(?: (?P<joint>{joints}) {noun_pattern(2)})?)"
    )


_CAPTION: Final = _caption_pattern()
