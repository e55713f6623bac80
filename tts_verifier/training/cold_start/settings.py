"""The keys of both stages of the cold start that are not about their data."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypedDict

from tts_verifier.errors import InputError
from tts_verifier.training.common.bounds import LARGEST_STEP, check_most, check_processes

Precision = Literal["bf16", "no"]
Dtype = Literal["float32", "bfloat16", "float16"]

MINIATURE: Final = "miniature"
"""The name of the endless source."""
TRACKERS: Final = ("tensorboard", "wandb")
"""Packages that metrics can go to, besides the run's own Parquet files."""
FREE_KEYS: Final = frozenset(
    {
        "output",
        "minutes",
        "workers",
        "save_minutes",
        "print_seconds",
        "trackers",
        "dtype",
        "in_memory",
        "examples",
    }
)
"""Keys that a run may change when it goes on: they do not decide the numbers."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a stage runs."""

    init: str
    """The checkpoint that it starts from: a folder, "shapes" or a hub id."""
    output: str
    """The folder of the run."""
    steps: int
    """Its length; the learning rate follows it."""
    batch: int
    """Rows of a step, over all processes."""
    block: int | None = None
    """Rows that go through the network together; None = those of a step, shared by processes."""
    learning_rate: float = 1e-5
    """The peak, reached after the warm-up; then a cosine falls to 0."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Of AdamW, for matrices."""
    seed: int = 0
    """Decides the rows and fresh weights."""
    minutes: float | None = None
    """Stops after this time; the same command goes on from there."""
    train_tower: bool = False
    """Whether the vision tower is trained."""
    lora_rank: int = 0
    """Rank of adapters in the language model, which are merged at the end; 0 = full training."""
    recompute: bool = False
    """Whether activations are computed again in the backward pass, which saves memory."""
    precision: Precision | None = None
    """Of products; None = bf16 on a GPU, no = float32."""
    dtype: Dtype = "float32"
    """Of the checkpoint that is written."""
    workers: int = 0
    """Processes that make rows, for each process that trains."""
    save_state: bool = True
    """Whether the state is kept. Without, a stopped run starts again, or from its weights."""
    save_minutes: float = 2.0
    """How often the state is kept."""
    print_seconds: float = 10.0
    """How often a line of progress is printed."""
    trackers: Sequence[str] | None = None
    """Of TRACKERS; None = tensorboard if it is installed."""
    examples: int = 8
    """Held-out pictures whose replies the report shows; 0 = none."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}.", argument=name)
        check_most("batch", self.batch, LARGEST_STEP, "the largest step")
        check_processes("workers", self.workers)
        for name in ("lora_rank", "workers", "weight_decay", "examples"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} must be finite and at least 0, got {getattr(self, name)}.",
                    argument=name,
                )
        for name in ("learning_rate", "minutes", "save_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0 and finite, got {value}.", argument=name)
        if not 0 <= self.warm_up <= 1:
            raise InputError(f"warm_up must be in [0, 1], got {self.warm_up}.", argument="warm_up")
        if self.lora_rank and self.train_tower:
            raise InputError(
                "lora_rank adapts the language model alone, so train_tower must be false with it.",
                argument="train_tower",
            )
        self._check_trackers()

    def _check_trackers(self) -> None:
        for name in self.trackers or ():
            if name not in TRACKERS:
                raise InputError(
                    f"trackers must be of {', '.join(TRACKERS)}, got {name!r}.",
                    argument="trackers",
                )
            if not importlib.util.find_spec(name):
                raise InputError(
                    f"The tracker {name} is not installed. Install it: pip install {name}.",
                    argument="trackers",
                )

    def blocks_for(self, processes: int) -> int:
        """Returns the number of blocks of a step.

        Raises:
            InputError: the rows of a step cannot be shared equally.
        """
        block = self.block or self.batch // processes
        if not block or self.batch % block or self.batch // block % processes:
            raise InputError(
                f"A step's rows must be shared equally: batch {self.batch} by {processes} "
                f"processes, in blocks of {block or 1}.",
                argument="batch",
            )
        return self.batch // block

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step: a linear rise, then a cosine to 0."""
        rise = self.warm_up * self.steps
        if step < rise:
            return self.learning_rate * (step + 1) / (rise + 1)
        progress = (step - rise) / max(self.steps - rise, 1)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2

    def tracker_names(self) -> list[str]:
        """Returns the trackers to use."""
        if self.trackers is not None:
            return list(self.trackers)
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What a stage learns from, and how its losses are weighted."""

    stage: int
    """1 or 2; only stage 2 has reasons."""
    data: str
    """A folder of ratings, or `MINIATURE`."""
    split: str
    """Of the folder."""
    in_memory: bool
    """Whether pictures are decoded once and kept."""
    reasons: str | None = None
    """A file of reasons; None = those that the miniature's truth gives."""
    samples: str | None = None
    """A folder of the generator's samples, for `MINIATURE` only."""
    answer_only_share: float = 1.0
    """Share of rows whose reply is the answer alone."""
    answer_weight: float = 0.0
    """Of those answers as a loss of their own."""
    map_weight: float | None = 0.0
    """Of both map errors; None = the checkpoint's, 0 = maps are not trained."""
    map_rows: int | None = 0
    """Rows of a block that train the heatmaps; None = all."""

    def __post_init__(self) -> None:
        if not 0 <= self.answer_only_share <= 1:
            raise InputError(
                f"answer_only_share must be in [0, 1], got {self.answer_only_share}.",
                argument="answer_only_share",
            )
        name = "reasons" if self.data == MINIATURE else "samples"
        if getattr(self, name):
            raise InputError(
                "reasons belong to a folder of ratings, and samples to data: miniature; got "
                f"{name} with data {self.data!r}.",
                argument=name,
            )


class RunKeys(TypedDict, total=False):
    """The keys of `RunSettings` that have defaults, as arguments of a stage."""

    block: int | None
    learning_rate: float
    warm_up: float
    weight_decay: float
    seed: int
    minutes: float | None
    train_tower: bool
    lora_rank: int
    recompute: bool
    precision: Precision | None
    dtype: Dtype
    workers: int
    save_state: bool
    save_minutes: float
    print_seconds: float
    trackers: Sequence[str] | None
    examples: int
