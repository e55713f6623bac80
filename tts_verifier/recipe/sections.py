"""One section of a recipe: check its keys and types, then build its object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Final

from tts_verifier import registry
from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError, RecipeError
from tts_verifier.recipe.signatures import call, describe, parameters, value_fits
from tts_verifier.recipe.yaml_lines import Document
from tts_verifier.types import Budget

ROLES: Final = {
    "generator": "generator",
    "verifier": "verifier",
    "judge": "verifier",
    "strategy": "strategy",
}
"""Section -> role in the registry. These sections have a `name`."""

UNNAMED: Final[Mapping[str, Callable[..., Any]]] = {"objective": Objective, "budget": Budget}
"""Section -> its only builder. These sections have no `name`."""


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
    """Argument -> where the recipe or an override sets it."""
    name: str | None = None
    """The builder's name in the registry; None for a section of `UNNAMED`."""

    def build(self) -> Any:
        """Calls the builder.

        Raises:
            RecipeError: the builder refuses a value; the message names its line.
        """
        try:
            return call(self.builder, self.values)
        except InputError as error:
            # Without the argument's name, the section's own line has to do.
            place = self.places.get(error.argument or "", self.place)
            raise RecipeError(f"{place}: {error}") from error

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
        name, builder = None, UNNAMED[section]
    arguments = {key: value for key, value in values.items() if name is None or key != "name"}
    signature = parameters(builder)
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
        raise RecipeError(f"{place}: {section} needs {', '.join(missing)}.")
    places = {key: document.place(section, key) for key in arguments}
    return Section(builder, arguments, place, places, name)


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
            path = (section, key) if section else (key,)
            hint = registry.suggestion(key, allowed)
            raise RecipeError(f"{document.place(*path)}: unknown key {'.'.join(path)!r}. {hint}")


def check_type(document: Document, path: tuple[str, ...], value: object, *, kind: Any) -> None:
    """Raises RecipeError where a value does not fit an annotation."""
    if not value_fits(value, kind):
        raise RecipeError(
            f"{document.place(*path)}: {'.'.join(path)} must be {describe(kind)}, got {value!r}."
        )
