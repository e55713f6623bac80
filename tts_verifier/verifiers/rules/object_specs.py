"""What a prompt asks for, as objects with counts, colours and places.

The templates and the fields are those of GenEval (arXiv:2310.11513, github.com/djghosh13/geneval,
MIT): `prompts/create_prompts.py` and `prompts/evaluation_metadata.jsonl`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import InputError
from tts_verifier.loading.regular_files import read_regular
from tts_verifier.verifiers.rules.colours import COLOUR_NAMES

PLACES: Final = ("left of", "right of", "above", "below")
_OTHER_NAMES: Final = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "television": "tv",
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair drier": "hair dryer",
}
"""Names of COCO's classes in checkpoints -> the names that GenEval's prompts use."""
_IRREGULAR: Final = {
    "person": "people",
    "knife": "knives",
    "mouse": "mice",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
}
_COUNTS: Final = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
_LEAD: Final = re.compile(r"^(?:a|an|the) (?:photo|picture|image|photograph) of ")
_PLACED: Final = re.compile(r" (?:is )?(?:(?:to|on) the )?(left of|right of|above|below) ")


@dataclass(frozen=True, slots=True)
class WantedObject:
    """Objects of one class that a picture should show."""

    name: str
    """The class."""
    count: int = 1
    """At least so many."""
    most: int | None = None
    """At most so many; None = any number."""
    colour: str | None = None
    """One of COLOUR_NAMES; None = any."""
    relation: str | None = None
    """One of PLACES, to the objects `target`; None = anywhere."""
    target: int = 0
    """The place of the other objects in the prompt's list."""


def names_of_classes(labels: Iterable[str]) -> dict[str, str]:
    """Returns every name of a detector's classes, singular and plural -> the class."""
    names = {}
    for label in labels:
        usual = _OTHER_NAMES.get(label.lower(), label.lower())
        for name in (label.lower(), usual):
            names[name] = usual
            head, _, last = name.rpartition(" ")
            plurals = {_IRREGULAR.get(last, ""), f"{last}s", f"{last}es"} - {""}
            names |= {f"{head} {plural}".strip(): usual for plural in plurals}
    # A plural may be another class's name, which counts more.
    return names | {n: n for n in (_OTHER_NAMES.get(x.lower(), x.lower()) for x in labels)}


def parse_objects(prompt: str, names: Mapping[str, str]) -> tuple[WantedObject, ...]:
    """Reads a prompt of GenEval's templates.

    "a photo of a bench", "a bench and a red car", "a photo of three cats",
    "a photo of a dog right of a teddy bear": objects are joined by "and" or by one relation. A
    number asks for exactly so many, an article for at least one.

    Args:
        prompt: the text, in any case.
        names: from `names_of_classes`.

    Raises:
        InputError: the prompt is none of these, or names objects that the detector does not know.
    """
    text = " ".join(prompt.lower().rstrip(" .,;!?").split())
    # "the" is an article too: two would read "a photo of" as an object otherwise.
    text = _LEAD.sub("", text).removeprefix("photo of ")
    parts = _PLACED.split(text)
    if len(parts) == 3:
        first, relation, second = parts
        other, one = _parse_object(second, names, prompt), _parse_object(first, names, prompt)
        return (
            other,
            WantedObject(one.name, one.count, one.most, one.colour, relation, target=0),
        )
    return tuple(_parse_object(part, names, prompt) for part in re.split(r",? and |, ", text))


def _parse_object(text: str, names: Mapping[str, str], prompt: str) -> WantedObject:
    word, _, rest = text.partition(" ")
    count, most = 1, None
    if word in ("a", "an", "the"):
        text = rest
    elif word in _COUNTS or (word.isascii() and word.isdecimal() and 0 < int(word) < 1000):
        count = most = _COUNTS.index(word) + 1 if word in _COUNTS else int(word)
        text = rest
    colour = None
    if text not in names:
        # "orange" is a class as well, hence the whole text first.
        first, _, noun = text.partition(" ")
        first = "gray" if first == "grey" else first
        if first in COLOUR_NAMES:
            colour, text = first, noun
    if text not in names:
        raise InputError(
            f"The prompt must name objects that the detector knows, joined by 'and' or by one of "
            f"{', '.join(PLACES)}; {text!r:.60} is none, in {prompt!r:.120}."
        )
    return WantedObject(names[text], count, most, colour)


def read_object_specs(path: Path, names: Mapping[str, str]) -> dict[str, tuple[WantedObject, ...]]:
    """Reads a file like GenEval's evaluation_metadata.jsonl: prompt -> what it asks for.

    Args:
        path: JSON lines with `prompt`, `include` (with `class`, `count`, and perhaps `color` and
            `position`, a relation and the number of another entry) and perhaps `exclude` (with
            `class` and `count`: fewer than so many).
        names: from `names_of_classes`.

    Raises:
        InputError: the file or a line cannot be used; the message has the line's number.
    """
    specs: dict[str, tuple[WantedObject, ...]] = {}
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a file of JSON lines: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, spec = _words_of(row["prompt"]), _spec_of_row(row, names)
            if specs.setdefault(prompt, spec) != spec:
                raise ValueError(f"{prompt!r:.80} is there before, with other objects")
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
            raise InputError(
                f"{path}:{number} must be a line of GenEval's metadata, with prompt and include: "
                f"{type(error).__name__} {error}"
            ) from error
    return specs


def _spec_of_row(row: Mapping[str, Any], names: Mapping[str, str]) -> tuple[WantedObject, ...]:
    below = {_class(clause, names): _positive(clause) for clause in row.get("exclude") or []}
    wanted: list[WantedObject] = []
    for clause in row["include"]:
        name, colour = _class(clause, names), clause.get("color")
        relation, target = clause.get("position") or (None, 0)
        colour = "gray" if colour == "grey" else colour
        if colour not in (None, *COLOUR_NAMES) or relation not in (None, *PLACES):
            raise ValueError(f"unknown colour or relation {colour or relation!r}")
        if relation is not None and not 0 <= target < len(wanted):
            raise ValueError(f"position must name an earlier entry, got {target!r}")
        most = below.pop(name) - 1 if name in below else None
        if most is not None and most < _positive(clause):
            raise ValueError(f"exclude must allow as many {name!r} as include asks for")
        wanted.append(WantedObject(name, _positive(clause), most, colour, relation, target))
    if not wanted and not below:
        raise ValueError("include or exclude must name an object")
    return (*wanted, *(WantedObject(name, 0, count - 1) for name, count in below.items()))


def _class(clause: Mapping[str, Any], names: Mapping[str, str]) -> str:
    name = _words_of(clause["class"]).lower()
    if name not in names:
        raise ValueError(f"the detector knows no {name!r}")
    return names[name]


def _positive(clause: Mapping[str, Any]) -> int:
    count = clause["count"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be an integer from 1, got {count!r}")
    return count


def _words_of(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a text is needed, got {value!r}")
    return value
