"""The keys of `tts-train flow`, and the limits that stop a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from tts_verifier.errors import InputError, suggestion
from tts_verifier.training.cold_start.settings import FREE_KEYS, Dtype, Precision
from tts_verifier.training.common.bounds import LARGEST_STEP, check_group, check_most
from tts_verifier.training.flow.formulas.advantages import AdvantageKind, Deviation
from tts_verifier.training.flow.formulas.losses import LossForm, RatioKind
from tts_verifier.training.flow.formulas.sde import StepKind

FLOW_FREE_KEYS: Final = FREE_KEYS | {"stop", "evaluate_every", "judges", "save_state"}
"""Those of `FlowSettings.free_keys`, whatever the loss is."""
POLICY_KEYS: Final = frozenset(
    {"sampler", "noise", "window", "trained_steps", "ratio", "clip", "kl"}
)
"""Keys that `loss: policy` alone reads."""
MOST_TOKENS: Final = 512
"""Of T5, in diffusers' StableDiffusion3Pipeline and FluxPipeline."""
MOST_LEVELS: Final = 1000
"""Of noise: as many as diffusers' schedulers have in training."""
STOP_NAMES: Final = ("gradient", "judge", "kl", "unscored_share")
"""Keys of `stop`."""


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """What a generator learns from, and how."""

    prompts: int
    """Captions of a step, over all processes."""
    group: int
    """Pictures of each."""
    captions: Any
    """As `prompts` of a recipe; "shapes" = captions of the miniature world."""
    held_out: Any
    """Likewise, for evaluations; needed where `evaluate_every` is not 0."""
    rewards: Sequence[Mapping[str, Any]]
    """Verifiers whose weighted objectives are the reward, see `rewards.VerifierSpec`."""
    judges: Sequence[Mapping[str, Any]] = ()
    """Verifiers that only measure, likewise."""
    map_verifier: Mapping[str, Any] | None = None
    """The verifier that gives the maps; None = the rewards'."""
    maps: Mapping[str, float] = field(
        default_factory=lambda: {"misalignment": 0.5, "artifact": 0.5}
    )
    """Heatmap -> weight; their weighted sum is the map of what is wrong (official: the mean)."""
    passes_at: float | None = 1.0
    """The reward from which a picture passes; None = captions are never drawn less often."""
    pass_bonus: float = 0.0
    """Added to the reward of a picture that passes, before pictures are compared."""
    easy_weight: float = 0.5
    """Each time that all pictures of a caption pass, its weight becomes this much; at least 5 %."""
    loss: LossForm = "policy"
    """See `losses`."""
    advantage: AdvantageKind = "scalar"
    """See `advantages`."""
    deviation: Deviation = "global"
    """See `advantages`."""
    most_advantage: float = 5.0
    """The bound of advantages; `awm` and `nft` divide by it, so theirs are in [-1, 1]."""
    penalty: float = 1.0
    """c of the advantage `penalty`."""
    steps_drawn: int = 10
    """Steps of the sampler in training."""
    guidance: float = 1.0
    """Of the sampler; 1 = without classifier-free guidance."""
    update_guidance: float | None = None
    """Of the prediction that is trained; None = as `guidance`."""
    embedded_guidance: float = 3.5
    """That a transformer reads as an input, such as FLUX.1-dev's."""
    height: int | None = None
    """Of pictures in pixels; None = the pipeline's own."""
    width: int | None = None
    """Likewise."""
    max_sequence_length: int | None = None
    """Of T5; None = the pipeline's own, 16 for the bundled one."""
    sampler: StepKind = "sde"
    """How steps of `policy` draw, see `sde`."""
    noise: float = 0.7
    """How much they draw."""
    window: int | None = None
    """Steps in a row that draw, at a random place in each step; None = all but the last."""
    trained_steps: int | None = None
    """`policy`: of the steps that draw, random ones that are trained; None = all."""
    times: int = 4
    """`awm`, `nft`: random times of the flow at which each picture is trained."""
    ratio: RatioKind = "picture"
    """`policy`, see `losses`."""
    clip: float = 1e-4
    """`policy`: how far the ratio may leave 1."""
    kl: float = 0.04
    """`policy`: weight of the divergence from the start of the run; 0 = none."""
    pull: float = 1.0
    """`awm`: weight of the distance to the reference."""
    nft_beta: float = 1.0
    """`nft`: see `losses`."""
    base_pull: float = 0.0
    """`awm`, `nft`: weight of the distance to the start of the run; 0 = none."""
    reference_rate: float = 0.05
    """`awm`, `nft`: how far the reference moves towards the policy at each update."""
    updates: int = 1
    """Updates of a step, each with equally many of its captions."""
    block: int | None = None
    """Pictures that go through the network together; None = those of an update."""
    average: float = 0.0
    """Decay of the averaged weights, which are evaluated and written; 0 = none."""
    draw_ahead: bool = True
    """Whether the next pictures are drawn while these are verified, with weights one step old."""
    lora_alpha: int | None = None
    """Scale of the adapters; None = twice `lora_rank`, as officially."""
    lora_targets: Sequence[str] | None = None
    """Layers that get adapters; None = the projections of attention (official)."""
    evaluate_every: int = 0
    """Steps between evaluations with held-out captions; 0 = none."""
    evaluate_captions: int = 96
    """Captions of an evaluation."""
    stop: Mapping[str, float] = field(default_factory=dict)
    """Of STOP_NAMES: limits that stop a run, see `evaluation.broken_rule`."""

    def __post_init__(self) -> None:
        if self.group < 2:
            raise InputError(
                "An advantage compares the pictures of a group, so group must be at least 2, got "
                f"{self.group}.",
                argument="group",
            )
        for name in ("prompts", "steps_drawn", "window", "trained_steps", "times", "updates"):
            _check_range(name, getattr(self, name), at_least=1)
        for name in ("block", "evaluate_captions", "max_sequence_length"):
            _check_range(name, getattr(self, name), at_least=1)
        check_group(self.prompts, self.group)
        check_most("evaluate_captions", self.evaluate_captions, LARGEST_STEP, "the largest step")
        for name in ("steps_drawn", "times"):
            check_most(name, getattr(self, name), MOST_LEVELS, "the levels of noise of a schedule")
        length, what = self.max_sequence_length, "as in the pipelines' calls"
        check_most("max_sequence_length", length, MOST_TOKENS, what)
        for name in ("kl", "pull", "base_pull", "evaluate_every", "penalty", "pass_bonus"):
            _check_range(name, getattr(self, name), at_least=0)
        _check_range("embedded_guidance", self.embedded_guidance, at_least=0)
        for name in ("guidance", "update_guidance"):
            _check_range(name, getattr(self, name), at_least=1)
        for name in ("most_advantage", "clip", "nft_beta", "lora_alpha", "noise"):
            _check_range(name, getattr(self, name), above=0)
        for name in ("average", "reference_rate", "easy_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"{name} must be in [0, 1], got {getattr(self, name)}.", argument=name
                )
        if self.average == 1:
            raise InputError(
                "average must be below 1: with 1 the averaged weights, which are written, never "
                "change.",
                argument="average",
            )
        if self.passes_at is not None and not _is_finite_number(self.passes_at):
            raise InputError(
                f"passes_at must be a reward, got {self.passes_at!r}.", argument="passes_at"
            )
        self._check_steps()
        self._check_parts()
        self._check_maps()
        self._check_stop()

    def _check_steps(self) -> None:
        if self.loss != "policy":
            for name in ("window", "trained_steps"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"{name} chooses steps that draw noise, and loss: {self.loss} draws none. "
                        "Leave it out, or choose loss: policy.",
                        argument=name,
                    )
            return
        drawing = self.steps_drawn - 1
        if drawing < 1:
            raise InputError(
                "policy draws noise in all steps but the last, so steps_drawn must be at least 2, "
                f"got {self.steps_drawn}.",
                argument="steps_drawn",
            )
        for name, most in (("window", drawing), ("trained_steps", self.window or drawing)):
            value = getattr(self, name)
            if value is not None and value > most:
                raise InputError(
                    f"{name} must be at most {most}, the steps that it is taken from, got {value}.",
                    argument=name,
                )
        if self.sampler == "cps" and self.noise > 1:
            raise InputError(f"cps takes noise of at most 1, got {self.noise}.", argument="noise")

    def _check_parts(self) -> None:
        if not self.rewards:
            raise InputError("rewards must name at least one verifier.", argument="rewards")
        for name in ("rewards", "judges"):
            tables = getattr(self, name)
            if not isinstance(tables, list | tuple) or not all(
                isinstance(table, Mapping) for table in tables
            ):
                raise InputError(
                    f"{name} must be a list of tables, such as [{{verifier: shapes}}], got "
                    f"{tables!r:.100}.",
                    argument=name,
                )
        if isinstance(self.lora_targets, str):
            raise InputError(
                f"lora_targets must be a list, got the text {self.lora_targets!r}.",
                argument="lora_targets",
            )
        if self.prompts % self.updates:
            raise InputError(
                f"The {self.prompts} captions of a step must be shared equally by updates, got "
                f"{self.updates}.",
                argument="updates",
            )

    def _check_maps(self) -> None:
        weights = list(self.maps.values()) if isinstance(self.maps, Mapping) else [None]
        if not all(_is_finite_number(w) and w >= 0 for w in weights) or sum(weights) > 1 + 1e-6:
            raise InputError(
                "maps must have weights from 0, in all at most 1, so that the map of what is wrong "
                f"stays in [0, 1], got {self.maps!r:.100}.",
                argument="maps",
            )
        if self.advantage != "scalar" and not any(self.maps.values()):
            raise InputError(
                f"advantage: {self.advantage} needs maps, and all weights of maps are 0.",
                argument="maps",
            )

    def _check_stop(self) -> None:
        for name, limit in self.stop.items():
            if not _is_finite_number(limit) or limit <= 0 or (name == "judge" and limit % 1):
                kind = "a whole number" if name == "judge" else "a number"
                raise InputError(
                    f"stop.{name} must be {kind} above 0, got {limit!r}.", argument="stop"
                )
        if self.stop.get("unscored_share", 0) >= 1:
            raise InputError(
                "stop.unscored_share must be a share below 1, since no share is above 1, got "
                f"{self.stop['unscored_share']!r}.",
                argument="stop",
            )
        for name in self.stop:
            if name not in STOP_NAMES:
                raise InputError(
                    f"stop has the unknown name {name!r}. {suggestion(name, STOP_NAMES)}",
                    argument="stop",
                )
        if self.pass_bonus and self.passes_at is None:
            raise InputError(
                f"pass_bonus is for pictures that pass, so {self.pass_bonus:g} needs passes_at, "
                "the reward from which one does, and it is None.",
                argument="pass_bonus",
            )
        if "kl" in self.stop and not (self.loss == "policy" and self.kl):
            raise InputError(
                "stop.kl needs loss: policy and a kl above 0, because no other run measures the "
                f"divergence, got loss: {self.loss} and kl: {self.kl:g}.",
                argument="stop",
            )
        self._check_judges()

    def _check_judges(self) -> None:
        if self.evaluate_every and self.held_out is None:
            raise InputError(
                f"evaluate_every draws held-out captions, so {self.evaluate_every} needs held_out. "
                "Name captions that are not trained, or set evaluate_every to 0.",
                argument="evaluate_every",
            )
        if "judge" not in self.stop:
            return
        if not (self.judges and self.evaluate_every):
            raise InputError(
                "stop.judge compares the reward with a judge in evaluations, so it needs judges "
                "and evaluate_every.",
                argument="stop",
            )
        judge, *scored = [
            {k: v for k, v in table.items() if k not in ("weight", "processes")}
            for table in (self.judges[0], *self.rewards)
        ]
        if judge in scored:
            raise InputError(
                "stop.judge needs a first judge that is no reward, because it asks whether the "
                f"reward rises where the judge does not; both are {dict(self.judges[0])}.",
                argument="judges",
            )

    @property
    def free_keys(self) -> frozenset[str]:
        """Keys that a run may change when it goes on: they do not decide the numbers."""
        return FLOW_FREE_KEYS | (POLICY_KEYS if self.loss != "policy" else frozenset())

    @property
    def trained_guidance(self) -> float:
        """The guidance of the prediction that is trained."""
        return self.guidance if self.update_guidance is None else self.update_guidance

    def share_of(self, process: int, processes: int) -> range:
        """Returns the numbers of a process' captions in a step.

        Raises:
            InputError: the pictures cannot be shared equally.
        """
        parts = processes * self.updates
        pictures = self.prompts * self.group
        if self.prompts % parts or (pictures // parts) % self.block_of(processes):
            raise InputError(
                f"A step's captions must be shared equally: {self.prompts} captions of "
                f"{self.group} pictures by {processes} processes and {self.updates} updates, in "
                f"blocks of {self.block_of(processes)} pictures.",
                argument="prompts",
            )
        count = self.prompts // processes
        return range(process * count, (process + 1) * count)

    def block_of(self, processes: int) -> int:
        """Returns the number of pictures that go through the network together."""
        return self.block or max(1, self.prompts * self.group // (processes * self.updates))


class FlowRunKeys(TypedDict, total=False):
    """The keys of `RunSettings` that this entry takes too."""

    learning_rate: float
    warm_up: float
    weight_decay: float
    seed: int
    minutes: float | None
    lora_rank: int
    recompute: bool
    precision: Precision | None
    dtype: Dtype
    save_state: bool
    save_minutes: float
    print_seconds: float
    trackers: Sequence[str] | None


@contextmanager
def placed_at(key: str) -> Iterator[None]:
    """Makes an InputError inside the `with` block one of a key of the config."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}", argument=key) from error


def _check_range(
    name: str, value: float | None, *, at_least: float = -math.inf, above: float = -math.inf
) -> None:
    if value is None or (value >= at_least and value > above and math.isfinite(value)):
        return
    if value == math.inf:
        raise InputError(f"{name} must be finite, got {value}.", argument=name)
    rule = f"above {above:g}" if above > -math.inf else f"at least {at_least:g}"
    raise InputError(f"{name} must be {rule}, got {value}.", argument=name)


def _is_finite_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
