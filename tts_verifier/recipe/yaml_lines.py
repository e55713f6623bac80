"""YAML text -> plain values, and the line of each key.

Stricter than YAML: keys are words and appear once, there are no aliases and no tags, and size and
depth are limited.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from tts_verifier.errors import RecipeError

KeyPath = tuple[str, ...]

MAX_CHARACTERS: Final = 2**18
"""A longer recipe is refused: longer lists of prompts belong into a file of their own."""
MAX_NODES: Final = 10_000
"""A recipe with more keys and values is refused: PyYAML may read no more in half a second."""
MAX_DEPTH: Final = 50
"""A recipe that is nested more deeply is refused; PyYAML itself would exhaust the stack."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads 1e-3 as a number (YAML 1.1 wants 1.0e-3).

    It refuses what a recipe may not be before anything is built from it, event by event.
    """

    def __init__(self, text: str, name: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise RecipeError(
                f"{name}: a recipe must have at most {MAX_CHARACTERS} characters, it has "
                "more. Put long lists of prompts into a file."
            )
        super().__init__(text)
        self._name, self._depth, self._nodes = name, 0, 0

    def get_event(self) -> Any:
        event: Any = super().get_event()  # type: ignore[no-untyped-call]
        self._nodes += isinstance(event, yaml.NodeEvent)
        self._depth += isinstance(event, yaml.CollectionStartEvent)
        self._depth -= isinstance(event, yaml.CollectionEndEvent)
        if fault := self._fault(event):
            line = "" if self._name.startswith("override") else f":{event.start_mark.line + 1}"
            raise RecipeError(f"{self._name}{line}: {fault}")
        return event

    def _fault(self, event: Any) -> str:
        # A few nested aliases expand to gigabytes ("billion laughs").
        if isinstance(event, yaml.AliasEvent):
            return f"a recipe has no aliases, got *{event.anchor}."
        # A tag names a type, and so perhaps code; "!" alone says that a value is plain text.
        if getattr(event, "tag", None) not in (None, "!"):
            return f"a recipe has no tags, got {str(event.tag)[:60]}."
        if isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.fullmatch(event.value):
            return f"a number must have fewer than 1000 digits, got {len(event.value)}."
        if self._depth > MAX_DEPTH:
            return f"a recipe must be nested at most {MAX_DEPTH} deep, it is deeper."
        if self._nodes > MAX_NODES:
            return (
                f"a recipe must have at most {MAX_NODES} keys and values, it has more. Put long "
                "lists of prompts into a file."
            )
        return ""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)

# Python neither reads nor writes an integer of thousands of digits.
_LONG_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-FxXo_:]{999,}")

# Besides its own errors PyYAML leaks these on odd scalars, such as `!!int ""` or a 13th month.
_FAULTS = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Document:
    """A recipe's values and where each of them is set. `apply_override` changes it in place."""

    values: dict[str, Any]
    """Nested, as in the YAML text."""
    places: dict[KeyPath, str] = field(default_factory=dict)
    """Key path -> "file:line" or "override 'text'"; the empty path is the file itself."""

    def place(self, *path: str) -> str:
        """Returns where a key is set, or else where the nearest key above it is."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]


def parse_document(text: str, name: str) -> Document:
    """Parses a recipe's text.

    Args:
        text: YAML.
        name: the file's name, for messages.

    Raises:
        RecipeError: the text is not YAML, is too long or too deep, is not a table whose keys are
            words, has an alias or a tag, or sets a key twice.
    """
    places: dict[KeyPath, str] = {(): name}
    try:
        loader = _Loader(text, name)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{name}: a recipe must be a table of keys and values.")
        _note_places(node, (), name, places=places)
        _refuse_twins(node, name)
        return Document(loader.construct_document(node), places)
    except RecipeError:
        raise
    except _FAULTS as error:
        raise RecipeError(
            f"{_error_place(error, name)}: a recipe must be YAML: {_error_text(error)}"
        ) from error


def apply_override(document: Document, text: str) -> None:
    """Applies an override such as `strategy.n=16` to a document, in place.

    The part after "=" is YAML. Missing tables on the way to the key are created.

    Raises:
        RecipeError: the text is not `key=value`, or a plain value is on the way to the key.
    """
    key, equals, raw = text.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise RecipeError(f"An override must look like strategy.n=16, got {_shown(text)}.")
    place = f"override {_shown(text)}"
    if len(path) > MAX_DEPTH:
        raise RecipeError(f"{place}: a key must be at most {MAX_DEPTH} deep, got {len(path)}.")
    try:
        loader = _Loader(raw, place)
        node = loader.get_single_node()
        _refuse_twins(node, place)
        value = None if node is None else loader.construct_document(node)
    except RecipeError:
        raise
    except _FAULTS as error:
        raise RecipeError(f"{place}: the value must be YAML: {_error_text(error)}") from error
    table: Any = document.values
    for depth, word in enumerate(path[:-1], 1):
        if table.get(word) is None:
            table[word] = {}
            document.places[path[:depth]] = place
        table = table[word]
        if not isinstance(table, dict):
            raise RecipeError(f"{place}: {word} is a value, not a table of keys.")
    table[path[-1]] = value
    # An override that is a table replaces the keys below it, and so the lines that set them.
    for below in [other for other in document.places if other[: len(path)] == path]:
        del document.places[below]
    document.places[path] = place


def leaves_of(values: object, path: KeyPath = ()) -> dict[KeyPath, object]:
    """Returns key path -> value of everything that is no table of keys."""
    if not isinstance(values, dict) or not values:
        return {path: values}
    items = (leaves_of(value, (*path, str(key))) for key, value in values.items())
    return {key: value for leaves in items for key, value in leaves.items()}


def changed_leaves(before: dict[KeyPath, object], after: dict[KeyPath, object]) -> tuple[str, ...]:
    """Returns a line for each key whose value was set, changed or taken away."""
    lines = []
    for path in dict.fromkeys([*before, *after]):
        key = ".".join(path)
        if path not in after:
            # A table that took the place of this key is reported by its own keys.
            lines.append(f"{key}: removed (was {_value_text(before[path])})")
        elif path not in before:
            lines.append(f"{key}: {_value_text(after[path])}")
        elif before[path] != after[path]:
            lines.append(f"{key}: {_value_text(after[path])} (was {_value_text(before[path])})")
    return tuple(lines)


def _value_text(value: object) -> str:
    text = f"{len(value)} items" if isinstance(value, list) and len(value) > 3 else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _shown(override: str) -> str:
    """Returns an override in quotes, a long one without its end."""
    return repr(override if len(override) <= 200 else f"{override[:200]}…")


def _refuse_twins(node: yaml.Node | None, name: str) -> None:
    """Raises RecipeError where a table has a key twice; PyYAML would take the last one."""
    waiting = [] if node is None else [node]
    while waiting:
        current = waiting.pop()
        if isinstance(current, yaml.SequenceNode):
            waiting += current.value
        elif isinstance(current, yaml.MappingNode):
            words: set[tuple[str, str]] = set()
            for key, value in current.value:
                waiting.append(value)
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in words:
                    raise RecipeError(
                        f"{name}:{key.start_mark.line + 1}: {key.value} is set twice in a table."
                    )
                words.add((key.tag, str(key.value)))


def _note_places(
    node: yaml.MappingNode, path: KeyPath, name: str, *, places: dict[KeyPath, str]
) -> None:
    for key, value in node.value:
        line = f"{name}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            raise RecipeError(f"{line}: a key must be a word.")
        here = (*path, key.value)
        if here in places:
            raise RecipeError(f"{line}: {'.'.join(here)} is set twice.")
        places[here] = line
        # Lists have no keys of their own, so their items are found by the key above them.
        if isinstance(value, yaml.MappingNode):
            _note_places(value, here, name, places=places)


def _error_place(error: BaseException, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{name}:{mark.line + 1}" if mark is not None else name


def _error_text(error: BaseException) -> str:
    return str(getattr(error, "problem", None) or error or type(error).__name__)
