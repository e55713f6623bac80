"""Plain values against a constructor's signature: which keys it knows, which types it takes."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

ANY: Final = object()
"""The type of a parameter whose annotation says nothing that can be checked."""


def parameters(builder: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Returns name -> (type, default) of what a builder can be given by name.

    The default is `inspect.Parameter.empty` where there is none. Options given as
    `**options: Unpack[SomeTypedDict]` count one by one, with None as default; the first
    parameter of a `from_pretrained` is called `model`.
    """
    try:
        hints = get_type_hints(builder.__init__ if inspect.isclass(builder) else builder)
    except (NameError, TypeError):
        hints = {}
    found: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(builder).parameters.items():
        hint = hints.get(name, ANY)
        if parameter.kind is parameter.VAR_KEYWORD:
            options = next(iter(get_args(hint)), None)
            known = get_type_hints(options) if options is not None else {}
            found |= {option: (kind, None) for option, kind in known.items()}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = (hint, parameter.default)
    if getattr(builder, "__name__", "") == "from_pretrained" and found:
        first = next(iter(found))
        found = {"model": found.pop(first), **found}
    return found


def call(builder: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Calls a builder with values by the names of `parameters`."""
    values = dict(values)
    if getattr(builder, "__name__", "") == "from_pretrained" and "model" in values:
        return builder(values.pop("model"), **values)
    return builder(**values)


def fits(value: object, kind: Any) -> bool:
    """Says whether a plain value can be given for an annotation; unsure means yes.

    An int passes for a float, a list for any sequence; true and false are no numbers.
    """
    if kind in (ANY, Any):
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, arm) for arm in inner)
    if origin is Literal:
        return any(value == arm and type(value) is type(arm) for arm in inner)
    if kind is None or kind is type(None):
        return value is None
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    holder = origin or kind
    if not isinstance(holder, type):
        return True
    if issubclass(holder, Mapping):
        return isinstance(value, dict) and all(_entry_fits(item, inner) for item in value.items())
    if holder is not str and issubclass(holder, Sequence):
        items = inner[0] if inner else ANY
        return isinstance(value, list) and all(fits(item, items) for item in value)
    return isinstance(value, holder)


def _entry_fits(item: tuple[Any, Any], inner: tuple[Any, ...]) -> bool:
    return len(inner) != 2 or (fits(item[0], inner[0]) and fits(item[1], inner[1]))


def describe(kind: Any) -> str:
    """Returns an annotation as a user reads it."""
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
