"""The captions of the miniature world: what they say, how they are worded, what they ask for.

Six categories follow GenEval (Ghosh et al. 2023): a single object, two objects, counting,
colours, position, attribute binding. `parse` and `phrase` are inverse.

A picture serves its caption when it shows exactly the objects asked for and nothing else;
attributes that the caption leaves open are free. "left of" and its kin compare centres: the
second object's centre must lie more than `RELATION_MARGIN` pixels (of 128) further along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from tts_verifier.errors import InputError
from tts_verifier.shapes.vocabulary import COLOURS, COUNTS, RELATIONS, SHAPES

RELATION_MARGIN: Final = 10.0
"""Pixels of 128 between two centres, along the relation's axis, below which it does not hold."""

PREFIXES: Final = ("", "a picture of ", "an image of ", "a drawing of ", "a photo of ")
LONG_RELATIONS: Final = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "on top of",
    "below": "underneath",
}
VARIANTS: Final = 2 * len(PREFIXES)
"""How many phrasings a spec has; a category without relations has half of them."""

ConstraintKind = Literal["object", "colour", "count", "relation", "nothing_else"]


@dataclass(frozen=True, slots=True)
class Noun:
    """A kind of object; `colour` None = any."""

    shape: str
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """What a caption means.

    `nouns`: one, or two of different shape. `count`: how many of the first noun, 1 unless
    the category is counting. `relation`: where the first noun is, seen from the second.
    """

    category: str
    nouns: tuple[Noun, ...]
    count: int = 1
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """One checkable part of a spec; `noun` is the index of the noun that it is about."""

    kind: ConstraintKind
    noun: int | None = None


def constraints(spec: Spec) -> tuple[Constraint, ...]:
    """Lists what must hold: each noun's object, its colour, count, relation, nothing else."""
    found: list[Constraint] = []
    for index, noun in enumerate(spec.nouns):
        found.append(Constraint("object", index))
        if noun.colour is not None:
            found.append(Constraint("colour", index))
    if spec.category == "counting":
        found.append(Constraint("count", 0))
    if spec.relation is not None:
        found.append(Constraint("relation"))
    return (*found, Constraint("nothing_else"))


def phrase(spec: Spec, variant: int = 0) -> str:
    """Words a spec; `variant` in [0, VARIANTS) picks one of its phrasings."""
    prefix = PREFIXES[variant % len(PREFIXES)]
    first = _with_article(spec.nouns[0])
    if spec.count > 1:
        first = f"{COUNTS[spec.count - 1]} {_words(spec.nouns[0], plural=True)}"
    if len(spec.nouns) == 1:
        return prefix + first
    joint = "and"
    if spec.relation is not None:
        long = variant // len(PREFIXES) % 2 == 1
        joint = LONG_RELATIONS[spec.relation] if long else spec.relation
    return f"{prefix}{first} {joint} {_with_article(spec.nouns[1])}"


def variants(spec: Spec) -> int:
    """Returns how many different phrasings a spec has."""
    return VARIANTS if spec.relation is not None else len(PREFIXES)


def parse(text: str) -> Spec:
    """Reads a caption; case, spacing and a final full stop do not matter.

    Raises:
        InputError: the caption is outside the grammar; the message shows it.
    """
    words = " ".join(text.lower().split()).removesuffix(".").strip()
    match = _CAPTION.fullmatch(words)
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
    return _pair(first, second, part["joint"], text)


def _pair(first: Noun, second: Noun, joint: str, text: str) -> Spec:
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


def _words(noun: Noun, *, plural: bool = False) -> str:
    shape = _PLURAL[noun.shape] if plural else noun.shape
    return shape if noun.colour is None else f"{noun.colour} {shape}"


def _with_article(noun: Noun) -> str:
    words = _words(noun)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_PLURAL: Final = {s: s + ("es" if s.endswith("s") else "s") for s in SHAPES}
_SINGULAR: Final = {plural: s for s, plural in _PLURAL.items()}
_RELATION: Final = {r: r for r in RELATIONS} | {long: r for r, long in LONG_RELATIONS.items()}


def _pattern() -> re.Pattern[str]:
    colour, shape = "|".join(COLOURS), "|".join(SHAPES)
    prefix = "|".join(p.strip() for p in PREFIXES if p)
    joints = "|".join(["and", *_RELATION])

    def one(index: int) -> str:
        return rf"an? (?:(?P<colour{index}>{colour}) )?(?P<shape{index}>{shape})"

    plural = "|".join(_SINGULAR)
    counted = rf"(?P<count>{'|'.join(COUNTS[1:])}) (?:(?P<colour0>{colour}) )?(?P<counted>{plural})"
    return re.compile(
        rf"(?:(?:{prefix}) )?(?:{counted}|{one(1)}(?: (?P<joint>{joints}) {one(2)})?)"
    )


_CAPTION: Final = _pattern()
