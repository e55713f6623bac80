"""From a proposal to a row of the log: jobs, samples, trials, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.images import card, overlay
from tts_verifier.types.cost import Budget, Cost
from tts_verifier.types.proposals import Prompt, Proposal, parent_of
from tts_verifier.types.score_names import written_scores
from tts_verifier.types.verdicts import Box, Detail, Heatmap

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Stored(Generic[T]):
    """A value that lives in a file until somebody looks.

    `path` is relative to the run folder, empty for a value that is only in memory;
    `sha256` is of the file's bytes.
    """

    load: Callable[[], T]
    path: str = ""
    sha256: str = ""


State = Mapping[str, NDArray[np.float32]]
"""A generator's own state of an unfinished candidate (latents and the like)."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One candidate, drawn and judged: a row of the log.

    `objective`: what the search climbs, NaN when the verdict has no usable score.
    `parent_id`: the trial it was made from. `error`: why there is no image or no score.
    """

    id: str
    prompt: Prompt
    round: int
    proposal: Proposal
    progress: float
    scores: Mapping[str, float]
    objective: float
    cost: Cost = field(default_factory=Cost)
    boxes: tuple[Box, ...] = ()
    text: str = ""
    detail: Detail = "diagnose"
    image: Stored[Image.Image] | None = None
    heatmaps: Mapping[str, Stored[Heatmap]] = field(default_factory=dict)
    state: Stored[State] | None = None
    judge: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def parent_id(self) -> str | None:
        """The id of the trial that this one was made from, or None."""
        return parent_of(self.proposal)

    @property
    def finished(self) -> bool:
        """True when all steps were taken, so that this trial may be chosen."""
        return self.progress >= 1.0 and not self.error

    def _repr_html_(self) -> str:
        """Shows the trial in a notebook."""
        title = f"{self.prompt.text} · {self.error or f'{self.objective:.3f}'}"
        numbers = {
            **written_scores(self.scores),
            **{f"judge: {n}": value for n, value in self.judge.items()},
        }
        pictures = [] if self.image is None else [self.image.load()]
        maps = {name: stored.load().on_image() for name, stored in self.heatmaps.items()}
        pictures += [overlay(picture, maps, self.boxes) for picture in pictures]
        return card(title, pictures, numbers, self.text)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A proposal with all that it needs: `ancestors` from the parent to the root."""

    prompt: Prompt
    proposal: Proposal
    ancestors: tuple[Trial, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a job drew: an RGB image (an unfinished one's x0 preview), or an `error`.

    `progress`: the fraction of steps taken, in [0, 1]. `kept`: the same image where it is in
    a file already, to which the log then refers.
    """

    job: Job
    image: Image.Image | None
    progress: float = 1.0
    cost: Cost = field(default_factory=Cost)
    state: State | None = None
    error: str = ""
    kept: Stored[Image.Image] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """All that a strategy may know besides the history.

    `seed`: the run's. `supports`: the kinds of proposal and noise that the generator can serve.
    `budget`: what is left of it. `objective`: scores -> the number to climb.
    """

    prompt: Prompt
    seed: int
    supports: frozenset[type]
    budget: Budget
    objective: Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a search ends with: the chosen trial (None if none is usable) and all, best first."""

    trial: Trial | None
    order: tuple[Trial, ...]
