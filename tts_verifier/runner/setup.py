"""The parts and limits of a run, and the checks before it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Final

from tts_verifier.choice.objective import Objective, as_objective, check_score_names
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.interfaces import (
    ExplainsLimits,
    Generator,
    ReadsScores,
    SaysMost,
    Strategy,
    Verifier,
    check_quick,
    details_of,
)
from tts_verifier.types import KINDS, Budget, Detail, Look, LowBand, Near, Prompt

_METHODS: Final = {
    "generator": ("generate", "supports"),
    "verifier": ("verify",),
    "strategy": ("propose", "needs"),
    "judge": ("verify", "settings"),
}
_NO_LIMITS: Final = Budget()
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
    detail: Detail = None  # type: ignore[assignment]
    """How thoroughly new candidates are verified; None = "diagnose" without `looks`, "score" with
    them."""
    looks: int = 0
    """Images of each prompt that are diagnosed once its search has ended: the best ones by their
    quick scores. The image is then chosen among them, by their diagnoses. They count as verifier
    calls, which the budget sets aside, and as no candidates. None is made once the budget's
    seconds are spent."""
    overlap: bool | None = None
    """Whether a thread verifies a batch while the next one is generated. None = yes if generator
    and verifier are on different devices or share a GPU. If they do not fit on their device
    together, they take turns instead (see `devices`)."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Prompt id -> why none of its candidates is generated; each one is a row with this error."""
    largest_batch: int | None = None
    """Jobs of a batch at most; None = the generator's `batch_size`."""

    @property
    def batch_size(self) -> int:
        """The number of jobs in a full batch."""
        size = self.generator.batch_size
        return size if self.largest_batch is None else min(size, self.largest_batch)

    def __post_init__(self) -> None:
        objective = as_objective(self.objective)
        if objective is None:
            own = isinstance(self.verifier, Verifier)
            objective = self.verifier.objective if own else Objective()
        object.__setattr__(self, "objective", objective)
        if self.detail is None:
            object.__setattr__(self, "detail", "score" if self.looks else "diagnose")

    def check(self) -> None:
        """Raises UnsupportedError or InputError when the parts do not fit together."""
        for role in ("generator", "verifier", "strategy"):
            check_part(role, getattr(self, role))
        check_options(seed=self.seed, judge=self.judge, budget=self.budget, overlap=self.overlap)
        check_needs(self.strategy, self.generator)
        check_scores(self.objective, self.strategy, known_scores(self.verifier))
        if self.detail not in ("score", "diagnose"):
            raise InputError(f"detail must be 'score' or 'diagnose', got {self.detail!r}.")
        check_details(self.strategy, self.verifier)
        check_looks(
            self.looks,
            detail=self.detail,
            strategy=self.strategy,
            verifier=self.verifier,
            budget=self.budget,
        )
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
            # Absent without looks, as in the logs of earlier versions.
            **({"looks": self.looks} if self.looks else {}),
            "prompts": {prompt.id: prompt.text for prompt in prompts},
        }


def check_options(
    *,
    seed: Any = 0,
    judge: Any = None,
    budget: Any = _NO_LIMITS,
    overlap: Any = None,
    **others: Any,
) -> None:
    """Raises InputError for a value that an option of a run cannot have.

    Args:
        seed: as in `RunSetup`, and so on.
        others: options that are checked elsewhere.
    """
    # bool is a subclass of int.
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"seed must be a whole number, got {seed!r}.", argument="seed")
    if judge is not None:
        check_part("judge", judge)
    if overlap not in (None, True, False):
        raise InputError(f"overlap must be true, false or None, got {overlap!r}.")
    if not isinstance(budget, Budget):
        raise InputError(f"budget must be a Budget, such as Budget(candidates=8), got {budget!r}.")
    if not all(limit is None or _is_limit(limit) for limit in asdict(budget).values()):
        raise InputError(f"Every limit of a budget must be positive, or None, got {budget}.")


def _is_limit(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def check_part(role: str, part: Any) -> None:
    """Raises InputError unless `part` has the methods of its role.

    Args:
        role: "generator", "verifier", "strategy" or "judge".
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
    names: Collection[str] | None = getattr(_owner(verifier), "score_names", None)
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


def check_details(strategy: Any, verifier: Any) -> None:
    """Raises UnsupportedError when a strategy looks at images and the verifier cannot diagnose.

    Args:
        strategy: an instance.
        verifier: an instance, or what builds one: a class, or a method of it.
    """
    if Look in strategy.needs and "diagnose" not in details_of(_owner(verifier)):
        raise UnsupportedError(
            f"{_class_name(strategy)} needs a verifier that diagnoses images, "
            f"{_class_name(verifier)} gives scores only. Choose another strategy or verifier."
        )


def check_looks(
    looks: int, *, detail: Detail | None, strategy: Any, verifier: Any, budget: Budget
) -> None:
    """Raises InputError or UnsupportedError when a run cannot look at its best images.

    Args:
        looks: of the run.
        detail: of the run; None = not set.
        strategy: an instance.
        verifier: as in `check_details`.
        budget: of the run.
    """

    def require(holds: bool, rule: str) -> None:
        if not holds:
            raise InputError(f"looks must {rule}, got {looks!r}.", argument="looks")

    # bool is a subclass of int.
    is_count = isinstance(looks, int) and not isinstance(looks, bool) and looks >= 0
    require(is_count, "be a number of images, 0 or more")
    if not looks:
        return
    if detail == "diagnose":
        raise InputError(
            "looks needs detail 'score', got 'diagnose', which diagnoses every image at once. "
            "Leave out detail, or looks.",
            argument="looks",
        )
    check_quick(_owner(verifier), _class_name(verifier))
    most = strategy.most if isinstance(strategy, SaysMost) else None
    require(most is None or looks <= most, f"be at most {most}, as many images as are finished")
    most = budget.candidates
    require(most is None or looks <= most, f"be at most {most}, the candidates of the budget")
    most = budget.verifier_calls
    require(most is None or looks < most, f"be less than {most}, the verifier calls of the budget")


def _owner(part: Any) -> Any:
    """Returns the class of a method of a class; everything else as it is."""
    return getattr(part, "__self__", part)


def _class_name(part: Any) -> str:
    part = _owner(part)
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
