"""The parts and limits of a run, and the checks before it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from numbers import Integral
from typing import Any, Final

from tts_verifier.choice.objective import Objective, as_objective, check_score_names
from tts_verifier.choice.tournament import check_near_ties
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.interfaces import (
    Comparer,
    ExplainsLimits,
    Generator,
    ReadsScores,
    SaysMost,
    Strategy,
    Verifier,
    check_detail,
    check_quick,
    details_of,
)
from tts_verifier.types import (
    KINDS,
    VERIFIES_ONLY,
    Budget,
    CachedDrafts,
    Detail,
    Drafts,
    Look,
    LowBand,
    Near,
    Prompt,
    Rewritten,
)

_METHODS: Final = {
    "generator": ("generate", "supports", "settings", "batch_size"),
    "verifier": ("verify",),
    "strategy": ("propose", "needs"),
    "judge": ("verify", "settings"),
    "comparer": ("compare", "settings"),
}
_EXAMPLES: Final = {
    "generator": "DiffusersGenerator(pipe)",
    "verifier": "Verifier.from_pretrained('shapes')",
    "strategy": "BestOfN(8)",
    "judge": "load_verifier('clip')",
    "comparer": "Verifier.from_pretrained('shapes')",
}
_NO_LIMITS: Final = Budget()
_ABILITIES: Final = {kind: name for name, kind in KINDS.items()} | {
    Near: "start from noise near a parent's",
    LowBand: "start from noise with a given low band",
    Drafts: "draw drafts in fewer steps",
    CachedDrafts: "draw drafts with a cache",
    Rewritten: "draw from a rewritten prompt",
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
    """The number that the search maximises, or its weights by score name. None = the verifier's
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
    """How many of the best images of each prompt, by their quick scores, are diagnosed once its
    search has ended. The image is then chosen among these, by their diagnoses. Looks are not
    candidates but cost verifier calls, which the budget reserves. None is made once the budget's
    seconds are spent."""
    ties: int = 0
    """How many of the best images of each prompt are compared in pairs once its search and its
    looks have ended; only images within `near` of the best objective are. The image is then chosen
    by these comparisons, each made in both orders. Comparisons are not candidates but cost two
    verifier calls each, which the budget reserves. None is made once the budget's seconds are
    spent."""
    near: float = 0.0
    """How far below the best objective an image may be and still be compared."""
    comparer: Comparer = None  # type: ignore[assignment]
    """Compares images in pairs; None = the verifier does it (see `Verifier.compare`)."""
    overlap: bool | None = None
    """Whether a thread verifies a batch while the next one is generated. None = yes if generator
    and verifier are on different devices or share a GPU. If they do not fit on their device
    together, they take turns instead (see `devices`)."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Prompt id -> why its candidates must not be generated; each becomes a row with the error."""
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
        # Numbers of numpy are no JSON values.
        if isinstance(self.seed, Integral) and not isinstance(self.seed, bool):
            object.__setattr__(self, "seed", int(self.seed))
        if self.comparer is None:
            object.__setattr__(self, "comparer", self.verifier)
        if self.detail is None:
            object.__setattr__(self, "detail", "score" if self.looks else "diagnose")

    def check(self) -> None:
        """Raises UnsupportedError or InputError when the parts do not fit together."""
        for role in ("generator", "verifier", "strategy"):
            check_part(role, getattr(self, role))
        check_options(seed=self.seed, judge=self.judge, budget=self.budget, overlap=self.overlap)
        if self.comparer is not self.verifier:
            check_part("comparer", self.comparer)
        check_needs(self.strategy, self.generator)
        check_scores(self.objective, self.strategy, known_scores(self.verifier))
        check_detail(self.detail)
        check_details(self.strategy, self.verifier)
        check_looks(
            self.looks,
            detail=self.detail,
            strategy=self.strategy,
            verifier=self.verifier,
            budget=self.budget,
        )
        check_ties(self.ties, near=self.near, comparer=self.comparer, budget=self.budget)
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
            "objective": self.objective.about(),
            "seed": self.seed,
            "budget": asdict(self.budget),
            "detail": self.detail,
            # Absent without looks, as in the logs of earlier versions.
            **({"looks": self.looks} if self.looks else {}),
            **(self._about_ties() if self.ties else {}),
            "prompts": {prompt.id: prompt.text for prompt in prompts},
        }

    def _about_ties(self) -> dict[str, Any]:
        own = self.comparer is self.verifier
        settings = None if own else dict(self.comparer.settings)
        return {"ties": self.ties, "near": self.near, "comparer": settings}


def check_ties(ties: int, *, near: float, comparer: Any, budget: Budget) -> None:
    """Raises InputError when a run cannot compare its best images.

    Args:
        ties: of the run.
        near: of the run.
        comparer: of the run, or its verifier.
        budget: of the run.
    """
    check_near_ties(ties, near)
    if not ties:
        return
    if not isinstance(comparer, Comparer):
        raise InputError(
            "ties needs a comparer, or a verifier that compares images, got "
            f"{type(comparer).__name__}. Derive the verifier from Verifier, or give a comparer.",
            argument="ties",
        )
    most = budget.verifier_calls
    if most is not None and calls_of_ties(ties) >= most:
        raise InputError(
            f"ties must leave the budget verifier calls to search with, got {ties}: these take up "
            f"to {calls_of_ties(ties)} of {most}.",
            argument="ties",
        )


def calls_of_ties(ties: int) -> int:
    """Returns the verifier calls that comparing so many images takes: every pair in both orders."""
    return ties * (ties - 1)


def check_options(
    *,
    seed: Any = 0,
    judge: Any = None,
    budget: Any = _NO_LIMITS,
    overlap: Any = None,
    comparer: Any = None,
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
    if comparer is not None:
        check_part("comparer", comparer)
    if overlap not in (None, True, False):
        raise InputError(f"overlap must be true, false or None, got {overlap!r}.")
    if not isinstance(budget, Budget):
        raise InputError(f"budget must be a Budget, such as Budget(candidates=8), got {budget!r}.")
    limits: dict[str, Any] = asdict(budget)
    for name, limit in limits.items():
        whole = name != "seconds"
        if limit is not None and not _is_limit(limit, int if whole else float):
            raise InputError(
                "Every limit of a budget must be positive"
                f"{', a whole number' if whole else ''} or None, got {name}={limit!r}."
            )


def _is_limit(value: Any, kind: type[int] | type[float]) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and value > 0


def check_part(role: str, part: Any) -> None:
    """Raises InputError unless `part` has the methods of its role.

    Args:
        role: "generator", "verifier", "strategy", "judge" or "comparer".
        part: the object to check.
    """
    # A class has the methods too, but the runner needs an instance.
    *others, last = _METHODS[role]
    lacking = [name for name in _METHODS[role] if not hasattr(part, name)]
    if isinstance(part, type) or lacking:
        needed = f"{', '.join(others)} and {last}" if others else last
        lack = f", which lacks {', '.join(lacking)}" if lacking else ""
        raise InputError(
            f"The {role} must be an object with {needed}, got {part!r}{lack}. "
            f"Make one, such as {_EXAMPLES[role]}."
        )


def check_needs(strategy: Any, generator: Any) -> None:
    """Raises UnsupportedError when a generator cannot serve a strategy.

    Args:
        strategy: an instance, or a class with `needs`.
        generator: an instance, or a class with `supports`; its `lacks`, if it has one, gives the
            reason for each kind that it does not support.
    """
    # The runner serves these itself, without the generator.
    supported = generator.supports.union(VERIFIES_ONLY)
    missing = [kind for kind in _ABILITIES if kind in strategy.needs - supported]
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
    # A part inside a strategy, such as a rewriter, says itself what determines its results.
    own = getattr(value, "settings", None)
    fields = own if isinstance(own, Mapping) else getattr(value, "__dict__", {})
    return {"class": type(value).__qualname__, **_as_json_values(fields)}
