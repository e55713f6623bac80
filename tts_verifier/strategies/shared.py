"""What strategies ask of a history, and of their own arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from tts_verifier.choice.objective import order
from tts_verifier.errors import InputError
from tts_verifier.identity import seed_for
from tts_verifier.types import Look, Task, Trial


def best(trials: Sequence[Trial], count: int = 1) -> list[Trial]:
    """Returns the `count` best trials, best first; NaN comes last."""
    return [trials[i] for i in order([t.objective for t in trials])[:count]]


def seeds(task: Task, count: int, *, first: int = 0, purpose: str = "draw") -> list[int]:
    """Returns the seeds `first` to `first + count` of a purpose."""
    return [seed_for(task.seed, task.prompt.text, first + i, purpose) for i in range(count)]


def rounds(history: Sequence[Trial]) -> int:
    """Returns the number of rounds that drew something."""
    return len({t.round for t in history if not isinstance(t.proposal, Look)})


def usable(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the unfinished trials that can be carried on."""
    return [t for t in trials if t.progress < 1 and t.image is not None]


def positive(name: str, value: int, least: int = 1) -> int:
    """Returns a whole number of at least `least`, or raises InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        rule = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise InputError(f"{name} must be {rule}, got {value!r}.", argument=name.partition(".")[0])
    return value


def within(name: str, value: float, fits: Callable[[float], bool], *, rule: str) -> float:
    """Returns a number that fits, or raises InputError with the rule, such as "in (0, 1]"."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
        raise InputError(f"{name} must be {rule}, got {value!r}.", argument=name.partition(".")[0])
    return float(value)


def rising(name: str, stops: Sequence[float]) -> tuple[float, ...]:
    """Returns fractions of the steps that rise to exactly 1, or raises InputError."""
    given = tuple(stops)
    good = all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in given)
    if (
        not good
        or len(given) < 2
        or given[-1] != 1
        or not all(a < b for a, b in pairwise((0.0, *given)))
    ):
        raise InputError(
            f"{name} must be at least two fractions that rise from above 0 to 1, got {stops!r}.",
            argument=name,
        )
    return tuple(float(s) for s in given)
