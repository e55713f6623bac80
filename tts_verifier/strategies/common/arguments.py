"""Checks of the arguments that strategies are constructed with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Final, TypeVar

from tts_verifier.errors import InputError

T = TypeVar("T")
MOST: Final = 1_000_000
"""The largest number of candidates, rounds or particles; more proposals would fill the memory."""


def check_integer(name: str, value: int, least: int = 1) -> int:
    """Returns an integer of at least `least`, and at most `MOST`.

    Raises:
        InputError: the value is not one.
    """
    # bool is a subclass of int; numpy's integers are integers too.
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        rule = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise InputError(f"{name} must be {rule}, got {value!r}.", argument=_argument(name))
    if value > MOST:
        raise InputError(f"{name} must be at most {MOST}, it is larger.", argument=_argument(name))
    # Logs hold plain numbers.
    return int(value)


def check_number(name: str, value: float, fits: Callable[[float], bool], *, rule: str) -> float:
    """Returns a number that satisfies `fits`.

    Args:
        name: of the argument, or of an item of it, such as "thresholds.overall".
        value: the number.
        fits: returns whether a number is allowed.
        rule: `fits` in words, such as "in (0, 1]".

    Raises:
        InputError: the value is not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not fits(value):
        raise InputError(f"{name} must be {rule}, got {value!r}.", argument=_argument(name))
    return float(value)


def check_items(name: str, values: Iterable[T], what: str) -> tuple[T, ...]:
    """Returns the items of a list, a tuple or the like; `what` says what they are.

    Raises:
        InputError: it is a single value, a text or a mapping.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(
            f"{name} must be a list of {what}, got {values!r:.80}.", argument=_argument(name)
        )
    return tuple(values)


def check_stops(name: str, stops: Sequence[float]) -> tuple[float, ...]:
    """Returns at least two fractions of the denoising steps, rising to exactly 1.

    Raises:
        InputError: the stops are not such fractions.
    """
    given = check_items(name, stops, "fractions")
    numbers = all(isinstance(s, Real) and not isinstance(s, bool) for s in given)
    if not (
        numbers
        and len(given) >= 2
        and given[-1] == 1
        and all(a < b for a, b in pairwise((0.0, *given)))
    ):
        raise InputError(
            f"{name} must be at least two fractions that rise from above 0 to 1, got {stops!r}.",
            argument=name,
        )
    return tuple(float(s) for s in given)


def _argument(name: str) -> str:
    """Returns the constructor's argument: "thresholds" for "thresholds.overall"."""
    return name.partition(".")[0]
