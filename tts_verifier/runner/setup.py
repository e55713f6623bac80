"""The parts and limits of a run, and the checks before it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Final

from tts_verifier.choice.objective import Objective, as_objective, check_score_names
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.interfaces import ExplainsLimits, Generator, ReadsScores, Strategy, Verifier
from tts_verifier.types import KINDS, Budget, Detail, Look, LowBand, Near, Prompt

_METHODS: Final = {
    "generator": ("generate", "supports"),
    "verifier": ("verify",),
    "strategy": ("propose", "needs"),
}
_ABILITIES: Final = {kind: name for name, kind in KINDS.items()} | {
    Near: "start from noise near a parent's",
    LowBand: "start from noise with a given low band",
}


@dataclass(frozen=True, slots=True, eq=False)
class RunSetup:
    """The parts and limits of a run."""

    generator: Generator
    """Carries out proposals."""
    verifier: Verifier
    """Scores the images."""
    strategy: Strategy
    """Decides what to generate next."""
    objective: Objective = None  # type: ignore[assignment]
    """The number that the search maximises; weights by score name will do. None = the verifier's
    own."""
    judge: Verifier | None = None
    """A held-out verifier that fills the `judge_*` columns; no strategy sees its scores."""
    seed: int = 0
    """The seed that all others are derived from."""
    budget: Budget = field(default_factory=Budget)
    """The limits for each prompt. Proposals are taken in order; one that no longer fits is dropped.
    Candidates and verifier calls never exceed the budget. Network evaluations exceed it only by
    the rounding of a fraction to whole steps. Seconds are known only afterwards, so they may
    exceed it by the batches under way."""
    detail: Detail = "diagnose"
    """How thoroughly new candidates are verified."""
    overlap: bool | None = None
    """Whether a thread verifies a batch while the next one is generated. None = yes if generator
    and verifier are on different devices or share a GPU. If they do not fit on their device
    together, they take turns instead (see `devices`)."""

    def __post_init__(self) -> None:
        objective = as_objective(self.objective)
        if objective is None:
            own = isinstance(self.verifier, Verifier)
            objective = self.verifier.objective if own else Objective()
        object.__setattr__(self, "objective", objective)

    def check(self) -> None:
        """Raises UnsupportedError or InputError when the parts do not fit together."""
        for role in _METHODS:
            check_part(role, getattr(self, role))
        check_needs(self.strategy, self.generator)
        check_scores(self.objective, self.strategy, known_scores(self.verifier))
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
        """Returns everything that identifies the run, as JSON values."""
        return {
            "generator": dict(self.generator.settings),
            "verifier": dict(self.verifier.settings),
            "judge": dict(self.judge.settings) if self.judge else None,
            "strategy": _as_json_values(self.strategy),
            "objective": dict(self.objective.weights),
            "seed": self.seed,
            "budget": asdict(self.budget),
            "detail": self.detail,
            "prompts": {prompt.id: prompt.text for prompt in prompts},
        }


def check_part(role: str, part: Any) -> None:
    """Raises InputError unless `part` has the methods of its role.

    Args:
        role: "generator", "verifier" or "strategy".
        part: the object to check.
    """
    # A class has the methods too, but the runner needs an instance.
    lacking = [name for name in _METHODS[role] if not hasattr(part, name)]
    if isinstance(part, type) or lacking:
        raise InputError(
            f"The {role} must be an object with {' and '.join(_METHODS[role])}, got {part!r}. "
            "Make one, or see tts_verifier.testing for what it must do."
        )


def check_needs(strategy: Any, generator: Any) -> None:
    """Raises UnsupportedError when a generator cannot serve a strategy.

    Args:
        strategy: an instance, or a class with `needs`.
        generator: an instance, or a class with `supports`; its `lacks`, if it has one, gives the
            reason for each kind that it does not support.
    """
    # Every run can serve a look: the runner does that without the generator.
    missing = [kind for kind in _ABILITIES if kind in strategy.needs - generator.supports - {Look}]
    if missing:
        kinds = ", ".join(_ABILITIES[kind] for kind in missing)
        lacks = generator.lacks if isinstance(generator, ExplainsLimits) else {}
        why = "".join(f": {lacks[kind]}" for kind in missing if lacks.get(kind))
        raise UnsupportedError(
            f"{_class_name(strategy)} needs a generator that can {kinds}, {_class_name(generator)} "
            f"cannot{why}. Choose another strategy or generator."
        )


def known_scores(verifier: Any) -> Collection[str] | None:
    """Returns the names of a verifier's scores, None if it does not say them.

    Args:
        verifier: an instance, or what builds one: a class, or a method of it.
    """
    names: Collection[str] | None = getattr(
        getattr(verifier, "__self__", verifier), "score_names", None
    )
    return names


def check_scores(objective: Objective | None, strategy: Any, known: Collection[str] | None) -> None:
    """Raises InputError when objective or strategy name a score that the verifier does not give.

    Args:
        objective: of the run; None = the verifier's own, which is not checked.
        strategy: an instance.
        known: from `known_scores`.
    """
    if objective is not None:
        objective.check_names(known)
    if isinstance(strategy, ReadsScores):
        what = f"{_class_name(strategy)}'s thresholds"
        check_score_names(strategy.reads, known, what, argument="thresholds")


def _class_name(part: Any) -> str:
    return str(part.__name__ if isinstance(part, type) else type(part).__name__)


def _as_json_values(value: Any) -> Any:
    """Returns a strategy or one of its arguments as JSON values, nested objects included."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return [_as_json_values(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _as_json_values(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _as_json_values(asdict(value))
    return {"class": type(value).__qualname__, **_as_json_values(getattr(value, "__dict__", {}))}
