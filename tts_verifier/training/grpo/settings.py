"""The keys of `tts-train grpo`, and the limits that stop a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypedDict

from tts_verifier.errors import InputError, RunError, suggestion
from tts_verifier.training.cold_start.settings import FREE_KEYS, Dtype, Precision
from tts_verifier.training.common.bounds import check_group
from tts_verifier.training.grpo.rewards.terms import Scaling
from tts_verifier.verifiers.imagedoctor.requests import Sampling

LossKind = Literal["grpo", "dr_grpo", "dapo"]

GRPO_FREE_KEYS: Final = FREE_KEYS | {"stop"}
"""Keys that a run may change when it goes on: they do not decide the numbers."""
STOP_RULES: Final[Mapping[str, tuple[str, bool, str]]] = {
    "kl": ("kl", True, "Lower learning_rate or raise beta."),
    "unread_share": (
        "unread_share",
        True,
        "Replies lose their form: lower learning_rate, raise beta or max_new_tokens.",
    ),
    "min_length": ("length", False, "Replies collapse: use loss: dr_grpo, or raise beta."),
    "entropy": ("entropy", False, "Replies no longer differ: raise temperature or beta."),
}
"""Key of `stop` -> the metric, whether more than the limit breaks the rule (else less), and what
helps."""
PATIENCE: Final = 3
"""Steps in a row that must break a rule before a run stops: single steps are noisy."""


@dataclass(frozen=True, slots=True)
class GrpoSettings:
    """What a run learns from, and how."""

    data: str
    """A folder of RichHF-18K or of its miniature."""
    prompts: int
    """Pictures with their prompts of a step, over all processes."""
    group: int = 8
    """Replies to each of them."""
    split: str = "train"
    """Of the folder."""
    in_memory: bool = False
    """Whether pictures and maps are decoded and conversations encoded once, and kept."""
    block: int | None = None
    """Groups that go through the network together; None = all."""
    temperature: float = 1.0
    """That replies are drawn at."""
    top_k: int = 0
    """As in `Sampling`."""
    top_p: float = 1.0
    """As in `Sampling`."""
    max_new_tokens: int | None = None
    """The most tokens of a reply; None = the checkpoint's."""
    loss: LossKind = "grpo"
    """How the losses of tokens are averaged, see `losses.token_weights`."""
    beta: float = 0.04
    """Of the KL divergence from the checkpoint that training starts from; 0 = none is kept."""
    epsilon: float = 0.2
    """How far the ratio of probabilities may leave 1."""
    num_iterations: int = 1
    """Updates with the same replies."""
    rewards: Mapping[str, float] | None = None
    """Name -> weight; None = all twelve with weight 1."""
    scaling: Scaling = "code"
    """Whose factors the rewards have: those of the official code or of the paper."""
    bound_scores: bool = True
    """Whether the reward of a score far from [0, 1] counts as the lowest of scores in [0, 1]; the
    official code has no such bound."""
    stop: Mapping[str, float] = field(default_factory=dict)
    """Of STOP_RULES: limits that stop a run after `PATIENCE` steps in a row beyond them."""

    def __post_init__(self) -> None:
        if self.group < 2:
            raise InputError(
                "An advantage compares the replies of a group, so group must be at least 2, got "
                f"{self.group}.",
                argument="group",
            )
        for name in ("prompts", "block", "max_new_tokens", "num_iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}.", argument=name)
        check_group(self.prompts, self.group)
        if not self.temperature > 0:
            raise InputError(
                f"Replies must be drawn: temperature must be above 0, got {self.temperature}.",
                argument="temperature",
            )
        if self.beta < 0:
            raise InputError(f"beta must not be negative, got {self.beta}.", argument="beta")
        if not 0 < self.epsilon < 1:
            raise InputError(
                f"epsilon must be above 0 and below 1, got {self.epsilon}.", argument="epsilon"
            )
        _check_names("stop", self.stop, STOP_RULES)
        Sampling(self.temperature, self.top_k, self.top_p)  # checks them

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p)

    def weights_of(self, names: Sequence[str]) -> dict[str, float]:
        """Returns the weight of each reward that counts.

        Raises:
            InputError: a weight has no reward of these names, or none is left.
        """
        if self.rewards is None:
            return dict.fromkeys(names, 1.0)
        _check_names("rewards", self.rewards, names)
        if not any(self.rewards.values()):
            raise InputError(
                f"rewards must weigh at least one reward, got {dict(self.rewards)}.",
                argument="rewards",
            )
        return {name: float(self.rewards[name]) for name in names if self.rewards.get(name)}

    def share(self, process: int, processes: int) -> range:
        """Returns the numbers of a process' prompts in a step.

        Raises:
            InputError: the prompts cannot be shared equally.
        """
        if self.prompts % processes:
            raise InputError(
                f"A step's prompts must be shared equally: {self.prompts} by {processes} "
                "processes.",
                argument="prompts",
            )
        count = self.prompts // processes
        return range(process * count, (process + 1) * count)


class GrpoRunKeys(TypedDict, total=False):
    """The keys of `RunSettings` that this entry takes too."""

    learning_rate: float
    warm_up: float
    weight_decay: float
    seed: int
    minutes: float | None
    train_tower: bool
    recompute: bool
    precision: Precision | None
    dtype: Dtype
    save_state: bool
    save_minutes: float
    print_seconds: float
    trackers: Sequence[str] | None
    examples: int


class Limits:
    """Stops a run whose metrics leave their limits. Saved with the run.

    Args:
        stop: rule -> limit.
    """

    def __init__(self, stop: Mapping[str, float]) -> None:
        self._stop = stop
        self.in_a_row: dict[str, int] = {}

    def check(self, step: int, row: Mapping[str, float]) -> None:
        """Counts the rules that a step's metrics break; a metric that is not there breaks none.

        Raises:
            RunError: a rule was broken in `PATIENCE` steps in a row.
        """
        for rule, limit in self._stop.items():
            name, above, remedy = STOP_RULES[rule]
            value = row.get(name)
            if value is None:
                continue
            broken = value > limit if above else value < limit
            self.in_a_row[rule] = self.in_a_row.get(rule, 0) + 1 if broken else 0
            if self.in_a_row[rule] >= PATIENCE:
                raise RunError(
                    f"stop.{rule} is {limit:g}, and {name} was {'above' if above else 'below'} it "
                    f"in {self.in_a_row[rule]} steps in a row, the last of them step {step} "
                    f"({value:g}). State, metrics and checkpoint are kept. {remedy}"
                )

    def state_dict(self) -> dict[str, int]:
        """Returns the counts."""
        return dict(self.in_a_row)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Sets the counts."""
        self.in_a_row = dict(state)


def _check_names(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(
                f"{argument} has the unknown name {name!r}. {suggestion(name, known)}",
                argument=argument,
            )
