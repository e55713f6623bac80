"""The parts and limits of a run, checked before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Final

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.interfaces import ExplainsLimits, Generator, Strategy, Verifier
from tts_verifier.types import KINDS, Budget, Detail, Look, LowBand, Near, Prompt

_METHODS: Final = {
    "generator": ("generate", "supports"),
    "verifier": ("verify",),
    "strategy": ("propose", "needs"),
}
_ABILITIES: Final = {kind: name for name, kind in KINDS.items()} | {
    Near: "draw near another's noise",
    LowBand: "draw from a low band of noise",
}


@dataclass(frozen=True, slots=True, eq=False)
class RunSetup:
    """The parts and limits of a run."""

    generator: Generator
    verifier: Verifier
    strategy: Strategy
    objective: Objective = field(default_factory=Objective)
    """What the search climbs."""
    judge: Verifier | None = None
    """A held-out verifier that fills the `judge_*` columns; no strategy sees its scores."""
    seed: int = 0
    """All other seeds are derived from it."""
    budget: Budget = field(default_factory=Budget)
    """Of each prompt. Proposals that no longer fit are dropped, in order. Candidates and
    verifier calls never exceed it, nor do network evaluations but for the rounding of a
    fraction to whole steps. Seconds are known only afterwards and may exceed it by the batches
    under way."""
    detail: Detail = "diagnose"
    """How thoroughly new candidates are verified."""
    overlap: bool | None = None
    """Whether a batch is verified, in a thread, while the next one is generated. None = where
    the two are on different devices or share a GPU. Parts that do not fit on their device
    together take turns instead (see `devices`)."""

    def check(self) -> None:
        """Raises UnsupportedError or InputError when the parts do not fit together."""
        for role in _METHODS:
            check_part(role, getattr(self, role))
        check_needs(self.strategy, self.generator)
        if self.budget.spent:
            raise InputError(f"Every limit of a budget must be positive, got {self.budget}.")
        if self.detail not in ("score", "diagnose"):
            raise InputError(f"detail must be 'score' or 'diagnose', got {self.detail!r}.")
        for name, value in self.generator.settings.items():
            if not isinstance(value, (str, int, float, bool, type(None))):
                raise InputError(
                    "A generator's setting must be text, a number, true, false or None; "
                    f"{name} of {type(self.generator).__name__} is {value!r}."
                )

    def about(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Returns what makes two runs the same run, as JSON values."""
        return {
            "generator": dict(self.generator.settings),
            "verifier": dict(self.verifier.settings),
            "judge": dict(self.judge.settings) if self.judge else None,
            "strategy": _plain(self.strategy),
            "objective": dict(self.objective.weights),
            "seed": self.seed,
            "budget": asdict(self.budget),
            "detail": self.detail,
            "prompts": {prompt.id: prompt.text for prompt in prompts},
        }


def check_part(role: str, part: Any) -> None:
    """Raises InputError where this is no "generator", "verifier" or "strategy"."""
    lacking = [name for name in _METHODS[role] if not hasattr(part, name)]
    if isinstance(part, type) or lacking:
        raise InputError(
            f"The {role} must be an object with {' and '.join(_METHODS[role])}, got {part!r}. "
            "Make one, or see tts_verifier.testing for what it must do."
        )


def check_needs(strategy: Any, generator: Any) -> None:
    """Raises UnsupportedError when a generator cannot draw what a strategy needs.

    Args:
        strategy: an instance, or a class that says what it `needs`.
        generator: an instance, or a class that says what it `supports`; it may say by kind
            why it `lacks` others.
    """
    missing = [kind for kind in _ABILITIES if kind in strategy.needs - generator.supports - {Look}]
    if missing:
        kinds = ", ".join(_ABILITIES[kind] for kind in missing)
        lacks = generator.lacks if isinstance(generator, ExplainsLimits) else {}
        why = "".join(f": {lacks[kind]}" for kind in missing if lacks.get(kind))
        raise UnsupportedError(
            f"{_name(strategy)} needs a generator that can {kinds}, {_name(generator)} "
            f"cannot{why}. Choose another strategy or generator."
        )


def _name(thing: Any) -> str:
    return str(thing.__name__ if isinstance(thing, type) else type(thing).__name__)


def _plain(value: Any) -> Any:
    """Returns a strategy or one of its arguments as JSON values, so that none is left out."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return {"class": type(value).__qualname__, **_plain(getattr(value, "__dict__", {}))}
