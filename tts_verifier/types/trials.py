"""The stages of a candidate (job, sample, trial), the task of a strategy, and the choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import readable_name
from tts_verifier.images import card
from tts_verifier.types.cost import Budget, Cost
from tts_verifier.types.proposals import Prompt, Proposal, Rewrite, parent_of
from tts_verifier.types.score_names import written_scores
from tts_verifier.types.stored import Stored
from tts_verifier.types.verdicts import Verdict

State = Mapping[str, NDArray[np.float32]]
"""The arrays that a generator needs to continue an unfinished candidate, such as latents."""

# The classes below are compared by identity (`eq=False`): they hold arrays and images, whose
# comparison is slow and, for arrays, has no single truth value.


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One candidate, generated and verified: a row of the log. It pickles; threads may share it."""

    id: str
    """Hash of the prompt, the proposal with its ancestors, and the generator's settings."""
    prompt: Prompt
    """The prompt that it was generated for."""
    round: int
    """How many rounds of this prompt came before."""
    proposal: Proposal
    """What the strategy proposed."""
    progress: float
    """The fraction of denoising steps taken, in [0, 1]."""
    verdict: Verdict | None = None
    """The verifier's verdict; None where there is no image or the verifier failed."""
    objective: float = math.nan
    """The number that the search maximises; NaN when the verdict has no usable score."""
    cost: Cost = field(default_factory=Cost)
    """The cost of the image and its verdict."""
    image: Stored[Image.Image] | None = None
    """RGB; the x0 preview of an unfinished candidate; None when generation failed."""
    size: tuple[int, int] | None = None
    """The image's (width, height) in pixels."""
    state: Stored[State] | None = None
    """The generator's state of an unfinished candidate."""
    judge: Mapping[str, float] = field(default_factory=dict)
    """Scores of the held-out judge by name; empty without one."""
    error: str = ""
    """Why there is no image or no usable score."""

    def __post_init__(self) -> None:
        # As in `Verdict`: the message of an exception may quote any text.
        object.__setattr__(self, "error", readable_name(self.error or ""))

    @property
    def parent_id(self) -> str | None:
        """The id of the trial that this one was made from, or None."""
        return parent_of(self.proposal)

    @property
    def scores(self) -> Mapping[str, float]:
        """The verdict's scores by name; empty without a verdict."""
        return {} if self.verdict is None else self.verdict.scores

    @property
    def finished(self) -> bool:
        """Whether all steps were taken and nothing failed. Only such a trial may be chosen."""
        return self.progress >= 1.0 and not self.error

    def __repr__(self) -> str:
        made = f"{type(self.proposal).__name__} of round {self.round}"
        part = "" if self.progress >= 1 else f", {self.progress:.0%} of the steps"
        found = self.error or f"{self.objective:.3f}"
        return f"Trial({self.id}, {self.prompt.text!r:.60}, {made}{part}: {found})"

    def _repr_html_(self) -> str:
        """Shows the trial in a notebook."""
        title = f"{self.prompt.text} · {self.error or f'{self.objective:.3f}'}"
        numbers = {
            **written_scores(self.scores),
            **{f"judge: {name}": value for name, value in self.judge.items()},
        }
        images = [] if self.image is None else [self.image.load()]
        if images and self.verdict is not None:
            images.append(self.verdict.overlay(images[0]))
        return card(title, images, numbers, "" if self.verdict is None else self.verdict.text)


@dataclass(frozen=True, slots=True, eq=False)
class Pick:
    """The part of a trial that matters once the search is over; the fields are those of `Trial`."""

    id: str
    objective: float
    scores: Mapping[str, float]
    judge: Mapping[str, float]
    image: Stored[Image.Image] | None
    error: str

    @classmethod
    def of(cls, trial: Trial) -> Pick:
        """Returns a trial without its proposal, whose mask may be large, and its heatmaps."""
        return cls(*(getattr(trial, name) for name in cls.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A proposal with everything that a generator needs to carry it out."""

    prompt: Prompt
    """The prompt to generate for."""
    proposal: Proposal
    """What to generate."""
    ancestors: tuple[Trial, ...] = ()
    """The trials that the proposal comes from, from the parent to the root."""
    id: str = ""
    """The id of the trial that this job makes."""
    round: int = 0
    """The round of the trial that this job makes."""

    @property
    def text(self) -> str:
        """The text to generate from: the prompt's, or what it was rewritten to."""
        texts = (t.verdict.text for t in self.ancestors if _is_rewrite(t) and t.verdict)
        return next(texts, "") or self.prompt.text


def _is_rewrite(trial: Trial) -> bool:
    return isinstance(trial.proposal, Rewrite)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A generator's answer to a job: an image, or an error."""

    job: Job
    """The job that this sample answers."""
    image: Image.Image | None
    """RGB; the x0 preview of an unfinished candidate; None when generation failed."""
    progress: float = 1.0
    """The fraction of denoising steps taken, in [0, 1]."""
    cost: Cost = field(default_factory=Cost)
    """Network evaluations and VAE passes; the runner adds the time."""
    state: State | None = None
    """What the generator needs to continue an unfinished candidate."""
    error: str = ""
    """Why there is no image."""
    stored: Stored[Image.Image] | None = None
    """The same image, if a file holds it already; the log then refers to that file."""
    interrupted: bool = False
    """Whether the generator was stopped, which ends the search. With an `error`, the image is
    unfinished or absent, and it is neither verified nor logged."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Everything that a strategy may know besides the history."""

    prompt: Prompt
    """The prompt to propose for."""
    seed: int
    """The run's seed."""
    supports: frozenset[type]
    """The kinds of proposal and of noise that the generator can serve."""
    budget: Budget
    """What is left of the prompt's budget."""
    objective: Callable[[Mapping[str, float]], float]
    """Turns scores by name into the number to maximise."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The result of the search for one prompt."""

    trial: Trial | None
    """The chosen trial; None if none is usable."""
    order: tuple[Trial, ...]
    """All trials that may be chosen, best first."""
