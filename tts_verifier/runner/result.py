"""The result of a run, in memory or read from the run folder on demand.

With a log, a run keeps only a few numbers of a finished prompt and the ids of its trials. These
take 17 bytes a trial, so memory hardly grows with the number of trials.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from tts_verifier.choice.objective import choose
from tts_verifier.choice.subset import (
    DIVERSITY,
    Embed,
    check_choice,
    choose_subset,
    layout_and_colour,
    places,
)
from tts_verifier.choice.summary import PromptSummary, summarise_prompt
from tts_verifier.errors import RunError
from tts_verifier.images import card
from tts_verifier.log import read_picks, read_trials
from tts_verifier.types import Choice, Prompt, Trial
from tts_verifier.types.score_names import written_scores

SHOWN: Final = 24
"""Prompts that a notebook shows of a result."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptResult:
    """The result of one finished search."""

    summary: PromptSummary
    """What the search achieved. Lacks its picks where the trials are in the log."""
    first: str
    """The id of the first finished trial, "" if there is none."""
    chosen: str
    """The id of the chosen trial, "" if there is none."""
    quick: str
    """The id of the trial that the chosen one looked at, "" if there is none."""
    ids: str
    """The ids of all trials, joined by spaces: one string takes less memory than a list."""
    trials: tuple[Trial, ...] | None
    """All trials, round by round; None where they are in the log."""
    objectives: Sequence[float] = ()
    """The objectives of all trials, if they are relative; else empty."""

    @classmethod
    def of(
        cls, prompt: Prompt, history: Sequence[Trial], *, logged: bool, relative: bool = False
    ) -> PromptResult:
        """Returns the result of a search.

        Args:
            prompt: the prompt that was searched for.
            history: all trials, round by round.
            logged: whether the trials are in the log and need not be kept in memory.
            relative: whether the objectives are those of the trials among each other.
        """
        summary = summarise_prompt(prompt, history)
        picks = (summary.first, summary.chosen, summary.quick)
        first, chosen, quick = (pick.id if pick else "" for pick in picks)
        ids = " ".join(trial.id for trial in history)
        if not logged:
            return cls(summary, first, chosen, quick, ids, tuple(history))
        summary = replace(summary, first=None, chosen=None, quick=None)
        values = array("d", [trial.objective for trial in history] if relative else [])
        return cls(summary, first, chosen, quick, ids, None, values)

    @property
    def lacks_picks(self) -> bool:
        """Whether the summary lacks picks that are in the log."""
        summary = self.summary
        return bool(
            (self.first and summary.first is None)
            or (self.chosen and summary.chosen is None)
            or (self.quick and summary.quick is None)
        )

    def relative_objectives(self) -> dict[str, float]:
        """Returns relative objectives by trial id; none if the objective is not relative."""
        ids = self.ids.split() if self.objectives else []
        return dict(zip(ids, self.objectives, strict=True))


class RunResult:
    """The result of a run. With a log, trials and images are read on first use.

    Safe to share between threads; two that read at once may get equal objects.

    Args:
        results: one for each prompt, in order.
        folder: the run folder; None = no log.
        busy: as the attribute.
        interrupted: as the attribute.
    """

    def __init__(
        self,
        results: Sequence[PromptResult],
        folder: Path | None,
        busy: Mapping[str, float],
        *,
        interrupted: bool = False,
    ) -> None:
        self.results = results
        """The results of the prompts, in order."""
        self.folder = folder
        """The run folder, None when there is no log."""
        self.busy = busy
        """The fractions of the run's time that went into "generate" and "verify". They add up to
        more than 1 when the two overlap."""
        self.interrupted = interrupted
        """Whether the generator was stopped, which ended the search early."""

    @cached_property
    def summaries(self) -> list[PromptSummary]:
        """What the run achieved for each prompt, in the order of the prompts.

        Raises:
            RunError: the folder is damaged.
        """
        if self.folder is None:
            return [result.summary for result in self.results]
        lacking = [result for result in self.results if result.lacks_picks]
        if not lacking:
            return [result.summary for result in self.results]
        ids = {trial_id for r in lacking for trial_id in (r.first, r.chosen, r.quick)}
        picks = read_picks(self.folder, ids)
        _check_present(self.folder, ids - {""}, picks)
        for result in lacking:
            for trial_id, value in result.relative_objectives().items():
                if trial_id in picks:
                    picks[trial_id] = replace(picks[trial_id], objective=value)
        return [
            replace(
                result.summary,
                first=picks.get(result.first),
                chosen=picks.get(result.chosen),
                quick=picks.get(result.quick),
            )
            if result.lacks_picks
            else result.summary
            for result in self.results
        ]

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, prompt by prompt and round by round.

        Raises:
            RunError: the folder is damaged.
        """
        if self.folder is None:
            return tuple(trial for result in self.results for trial in result.trials or ())
        by_id = {trial.id: trial for trial in read_trials(self.folder)}
        ids = [trial_id for result in self.results for trial_id in result.ids.split()]
        _check_present(self.folder, ids, by_id)
        for result in self.results:
            for trial_id, value in result.relative_objectives().items():
                by_id[trial_id] = replace(by_id[trial_id], objective=value)
        return tuple(by_id[trial_id] for trial_id in ids)

    @cached_property
    def choices(self) -> Mapping[str, Choice]:
        """The choices by prompt id; reads all trials."""
        trials: dict[str, list[Trial]] = {result.summary.prompt.id: [] for result in self.results}
        for trial in self.trials:
            trials[trial.prompt.id].append(trial)
        return {prompt_id: choose(history) for prompt_id, history in trials.items()}

    def subsets(
        self, k: int, *, diversity: float = DIVERSITY, embed: Embed = layout_and_colour
    ) -> dict[str, tuple[Trial, ...]]:
        """Returns k trials for each prompt whose images are good and differ from one another.

        The chosen trial comes first. A prompt with fewer usable trials has all of these.

        Args:
            k: how many images a prompt gets.
            diversity: in [0, 1]; 0 = the k best, 1 = the best one and what differs most from it.
            embed: RGB images -> (n, d) features by whose distances they differ, such as an
                embedding of CLIP or DINO; by default layout and colour. Called for each prompt.

        Raises:
            InputError: a number is out of range, or the features are not usable.
            RunError: the folder is damaged.
        """
        check_choice(k, diversity, embed)
        found = {}
        for prompt_id, choice in self.choices.items():
            usable = [t for t in choice.order if t.image and not math.isnan(t.objective)]
            ranked = [(t.verdict.detail if t.verdict else "", t.objective) for t in usable]
            images = [t.image.load() for t in usable if t.image]
            features = embed(images) if images else np.empty((0, 1))
            chosen = choose_subset(places(ranked), features, k, diversity=diversity)
            found[prompt_id] = tuple(usable[i] for i in chosen)
        return found

    @property
    def images(self) -> dict[str, Image.Image]:
        """The chosen images by prompt id; a prompt without a usable one is absent."""
        return {
            summary.prompt.id: summary.chosen.image.load()
            for summary in self.summaries
            if summary.chosen is not None and summary.chosen.image
        }

    def __repr__(self) -> str:
        # From memory alone: the folder may be gone.
        counts = (
            f"prompts {len(self.results)}",
            f"candidates {sum(r.summary.candidates for r in self.results)}",
            f"chosen {sum(bool(r.chosen) for r in self.results)}",
            f"failed {sum(r.summary.failed for r in self.results)}",
        )
        stopped = ", interrupted" if self.interrupted else ""
        place = "" if self.folder is None else f", in {self.folder}"
        return f"RunResult({', '.join(counts)}{stopped}{place})"

    def _repr_html_(self) -> str:
        """Shows the first prompts in a notebook: the first draw beside the chosen image."""
        cards = [_card_of(summary) for summary in self.summaries[:SHOWN]]
        return f"<p>{escape(repr(self))}</p>{''.join(cards)}"


def _card_of(summary: PromptSummary) -> str:
    picks = [summary.first, summary.chosen]
    values = [f"{pick.objective:.3f}" if pick else "no usable image" for pick in picks]
    images = [pick.image.load() for pick in picks if pick and pick.image]
    scores = written_scores(summary.chosen.scores if summary.chosen else {})
    return card(f"{summary.prompt.text} · {values[0]} → {values[1]}", images, scores)


def _check_present(folder: Path, ids: Iterable[str], in_log: Container[str]) -> None:
    missing = [trial_id for trial_id in ids if trial_id not in in_log]
    if missing:
        raise RunError(
            f"{folder} must still hold what the run wrote, and lacks trial {missing[0]}. Keep the "
            "folder where it was, or read the results before you move or delete it."
        )
