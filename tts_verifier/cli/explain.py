"""What `tts-run --explain` shows: the arguments of a part, with their types and meaning."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final, get_args

from tts_verifier import registry
from tts_verifier.errors import RecipeError, suggestion
from tts_verifier.recipe.sections import ROLES, UNNAMED_BUILDERS
from tts_verifier.registry.signatures import describe

_TEXT_WIDTH: Final = 80
_ARGUMENT: Final = re.compile(r"(\w+(?:, \w+)*): (.*)")


def explanation(what: str) -> str:
    """Returns what a part does, and its arguments with their types, defaults and meaning.

    Args:
        what: `ROLE.NAME`, such as "strategy.adaptive" or "verifier.my_file.py:MyVerifier"; a
            section without names, such as "budget"; or a name alone if one role alone has it.

    Raises:
        RecipeError: there is no such part.
    """
    if what in UNNAMED_BUILDERS:
        return _explained(what, UNNAMED_BUILDERS[what], what)
    section, _, name = what.partition(".")
    role = ROLES.get(section, section)
    if role not in registry.BUILT_IN or not name:
        role, name = _role_and_name(what)
        section = role
    builder = registry.builder(role, name)
    if role == "rewriter":
        section = "rewriter, in the section strategy"
    return _explained(f"{role}.{name}", builder, f"{section}: name: {name}")


def _role_and_name(what: str) -> tuple[str, str]:
    """Returns role and name of a name that one role alone has."""
    found = [role for role in registry.BUILT_IN if what in registry.names(role)]
    if len(found) == 1:
        return found[0], what
    every = [f"{role}.{name}" for role in registry.BUILT_IN for name in registry.names(role)]
    known = [f"{role}.{what}" for role in found] or [
        name for name in every if what in registry.BUILT_IN and name.startswith(f"{what}.")
    ]
    if known:
        raise RecipeError(f"{what} is not one part: give one of {', '.join(sorted(known))}.")
    raise RecipeError(f"There is no part {what!r}. {suggestion(what, [*every, *UNNAMED_BUILDERS])}")


def _explained(title: str, builder: Callable[..., Any], place: str) -> str:
    about = inspect.getdoc(builder) or ""
    lines = [title, *_wrapped(_head(about), "  "), "", f"In a recipe: {place}", ""]
    meanings = {**_meanings_in(about), **_options(builder)}
    for kind in inspect.getmro(builder) if inspect.isclass(builder) else ():
        # A class may leave the meaning of its arguments to the class that it derives from.
        meanings = {**_meanings_in(inspect.getdoc(kind) or ""), **_field_meanings(kind), **meanings}
    accepted = registry.parameters(builder)
    if "model" in accepted and "model" not in meanings:
        # As recipes name the first argument of a `from_pretrained`.
        meanings["model"] = next(iter(_meanings_in(about).values()), "")
    for name, (kind, default) in accepted.items():
        needed = default is inspect.Parameter.empty
        end = "required" if needed else f"default {default!r}"
        lines += _wrapped(f"{name}: {describe(kind)}, {end}", "  ", "      ")
        lines += _wrapped(meanings.get(name, ""), "      ")
    if not accepted:
        lines.append("  It has no arguments.")
    return "\n".join(lines)


def _head(about: str) -> str:
    """Returns what a docstring says before its first section, paragraph by paragraph."""
    return re.split(r"\n\n(?=\w+:\n)", about)[0]


def _wrapped(text: str, indent: str, later: str | None = None) -> Iterator[str]:
    for paragraph in filter(None, text.split("\n\n")):
        flat = " ".join(paragraph.split())
        yield from textwrap.wrap(
            flat, _TEXT_WIDTH, initial_indent=indent, subsequent_indent=later or indent
        )


def _meanings_in(about: str) -> dict[str, str]:
    """Returns name -> meaning of the section `Args` of a docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in about.partition("Args:\n")[2].splitlines():
        if line and not line.startswith(" "):
            break
        match = _ARGUMENT.fullmatch(line[4:])
        if match and not line.startswith(" " * 5):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _options(builder: Callable[..., Any]) -> Mapping[str, str]:
    """Returns name -> meaning of the keys of `**options: Unpack[SomeTypedDict]`."""
    meanings: dict[str, str] = {}
    for hint in registry.hints_of(builder).values():
        for table in get_args(hint):
            if hasattr(table, "__total__"):
                for kind in reversed(getattr(table, "__orig_bases__", ())):
                    meanings |= _field_meanings(kind) if inspect.isclass(kind) else {}
                meanings |= _field_meanings(table)
    return meanings


def _field_meanings(kind: type) -> dict[str, str]:
    """Returns field -> the text below it, for a class whose fields have one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    meanings = {}
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            meanings[field.target.id] = text.value.value
    return meanings
