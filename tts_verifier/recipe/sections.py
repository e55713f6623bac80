"""One section of a recipe: check its keys and types, then build its object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, Final

from tts_verifier import registry
from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError, RecipeError, suggestion
from tts_verifier.recipe.parallel_options import ParallelOptions
from tts_verifier.recipe.yaml_lines import Document
from tts_verifier.registry import (
    call,
    is_import_path,
    parameters,
    plugin_folders,
    plugins_beside,
)
from tts_verifier.registry.signatures import describe, is_finite, value_fits
from tts_verifier.types import Budget

ROLES: Final = {
    "generator": "generator",
    "verifier": "verifier",
    "judge": "verifier",
    "comparer": "comparer",
    "strategy": "strategy",
}
"""Section -> role in the registry. These sections have a `name`."""

UNNAMED: Final[Mapping[str, Callable[..., Any]]] = {"objective": Objective, "budget": Budget}
"""Section -> its only builder. These sections have no `name`."""


UNNAMED_BUILDERS: Final[Mapping[str, Callable[..., Any]]] = {**UNNAMED, "parallel": ParallelOptions}


@dataclass(frozen=True, slots=True)
class Section:
    """A section whose keys and types are right; its object is not built yet."""

    builder: Callable[..., Any]
    """A class or a function that returns the object."""
    values: Mapping[str, Any]
    """Argument -> value, as the recipe or an override says."""
    place: str
    """Where the section starts, as "file:line" or "override 'text'"."""
    places: Mapping[str, str]
    """Argument, or a key in it such as "weights.overall" -> where the recipe or an override sets
    it."""
    name: str | None = None
    """The builder's name in the registry, or its import path; None for a section of `UNNAMED`."""
    title: str = ""
    """The section's key in the recipe."""
    folders: tuple[Path, ...] = ()
    """Where import paths are looked up."""

    def __reduce__(self) -> tuple[Callable[..., Section], tuple[Any, ...]]:
        # A process that has not read the recipe does not know the module of a plug-in's file.
        builder = None if is_import_path(self.name or "") else self.builder
        state = (self.values, self.place, self.places, self.name, self.title, self.folders)
        return _unpickled, (builder, *state)

    def build(self) -> Any:
        """Calls the builder.

        Raises:
            RecipeError: the builder refuses a value; the message names its line.
        """
        with self.errors_placed(), plugins_beside(*self.folders):
            return call(self.builder, self.values, self.name or "")

    @contextmanager
    def errors_placed(self) -> Iterator[None]:
        """Turns an InputError into a RecipeError that names the line of the argument at fault."""
        try:
            yield
        except InputError as error:
            # A key inside an argument may have no line of its own, and an error no argument:
            # the nearest line above it has to do.
            argument = error.argument or ""
            while argument and argument not in self.places:
                argument = argument.rpartition(".")[0]
            raise RecipeError(f"{self.places.get(argument, self.place)}: {error}") from error

    def resolved(self) -> dict[str, Any]:
        """Returns the values and those defaults that a YAML file can hold."""
        plain = (str, int, float, bool, type(None))
        defaults = {n: d for n, (_, d) in parameters(self.builder).items() if isinstance(d, plain)}
        title = {} if self.name is None else {"name": self.name}
        return {**title, **defaults, **self.values}


def read_section(document: Document, section: str) -> Section:
    """Checks one section against the signature of its builder.

    Raises:
        RecipeError: a key is unknown or missing, or a value has the wrong type.
    """
    values, place = document.values[section], document.place(section)
    if not isinstance(values, dict):
        raise RecipeError(f"{place}: {section} must be a table of keys, got {values!r}.")
    if section in ROLES:
        name, builder = _named_builder(document, section, values.get("name"))
    else:
        name, builder = None, UNNAMED_BUILDERS[section]
    arguments = {key: value for key, value in values.items() if name is None or key != "name"}
    signature = parameters(builder)
    _check_left_over(document, section, arguments, signature)
    check_keys(document, arguments, known=signature, section=section)
    # As `resolved` writes an option that is not set: the builder must not see it.
    arguments = {k: v for k, v in arguments.items() if v is not None or signature[k][1] is not None}
    for key, value in arguments.items():
        check_type(document, (section, key), value, kind=signature[key][0])
    missing = [
        key
        for key, (_, default) in signature.items()
        if default is Parameter.empty and key not in arguments
    ]
    if missing:
        needed = ", ".join(missing)
        part = section if name is None else f"{section} {name}"
        hint = f" See tts-run --explain {ROLES[section]}.{name}." if name else ""
        raise RecipeError(f"{place}: {part} needs {needed}, which is not given.{hint}")
    places = {key: document.place(section, key) for key in arguments}
    places |= {
        ".".join(p[1:]): where for p, where in document.places.items() if p[:1] == (section,)
    }
    return Section(builder, arguments, place, places, name, section, plugin_folders())


def _check_left_over(
    document: Document, section: str, arguments: Mapping[str, Any], known: Iterable[str]
) -> None:
    """Raises RecipeError where an override names another part than the keys of the file fit."""
    place = document.place(section, "name")
    if section not in ROLES or not place.startswith("override"):
        return
    left = [key for key in arguments if key not in set(known)]
    left = [key for key in left if not document.place(section, key).startswith("override")]
    if left:
        name = document.values[section]["name"]
        raise RecipeError(
            f"{place}: {name} has no argument {left[0]!r}, which "
            f"{document.place(section, left[0])} gives. Replace the section as a whole: "
            f"'{section}={{name: {name}}}', with the arguments that it needs."
        )


def _unpickled(builder: Callable[..., Any] | None, *state: Any) -> Section:
    """Returns a section that another process has read."""
    if builder is None:
        *_, name, title, folders = state
        with plugins_beside(*folders):
            builder = registry.builder(ROLES[title], name)
    return Section(builder, *state)


def _named_builder(
    document: Document, section: str, name: object
) -> tuple[str, Callable[..., Any]]:
    role = ROLES[section]
    if not isinstance(name, str):
        names = ", ".join(sorted(registry.names(role)))
        raise RecipeError(f"{document.place(section)}: {section} needs a 'name', one of {names}.")
    try:
        return name, registry.builder(role, name)
    except RecipeError as error:
        raise RecipeError(f"{document.place(section, 'name')}: {error}") from error


def check_keys(
    document: Document, values: Mapping[str, Any], *, known: Iterable[str], section: str = ""
) -> None:
    """Raises RecipeError at the first key that is not `known`, and suggests a similar one."""
    allowed = dict.fromkeys(known)
    for key in values:
        if key not in allowed:
            # In YAML, a key may be a number or null too.
            path = (section, str(key)) if section else (str(key),)
            # `n=4` is a common slip for `strategy.n=4`.
            inner = [f"{k}.{key}" for k, v in values.items() if isinstance(v, dict) and key in v]
            hint = suggestion(str(key), allowed)
            hint = f"Did you mean {' or '.join(map(repr, inner))}?" if inner else hint
            raise RecipeError(f"{document.place(*path)}: unknown key {'.'.join(path)!r}. {hint}")


def check_type(document: Document, path: tuple[str, ...], value: object, *, kind: Any) -> None:
    """Raises RecipeError where a value does not fit an annotation."""
    if (inner := _infinite(value, path)) is not None:
        raise RecipeError(
            f"{document.place(*inner)}: {'.'.join(inner)} must be a finite number that a float can "
            "hold, got another."
        )
    if not value_fits(value, kind):
        shown = repr(value)
        shown = shown if len(shown) <= 200 else f"{shown[:197]}…"
        raise RecipeError(
            f"{document.place(*path)}: {'.'.join(path)} must be {describe(kind)}, got {shown}."
        )


def _infinite(value: object, path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the key path of the first number in a value that is not finite, None if all are.

    No part of a recipe takes such a number, wherever it stands: in tables and lists too.
    """
    if isinstance(value, dict):
        found = (_infinite(item, (*path, str(key))) for key, item in value.items())
    elif isinstance(value, list):
        found = (_infinite(item, path) for item in value)
    else:
        return None if is_finite(value) else path
    return next((place for place in found if place is not None), None)
