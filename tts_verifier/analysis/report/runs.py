"""Reads one run prompt by prompt, and keeps what its tables and charts need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tts_verifier.analysis.report.cards import PromptRow, PromptView, prompt_view
from tts_verifier.analysis.report.figures import (
    CategoryFigures,
    RunFigures,
    SearchState,
    categories,
    main_judge_score,
    search_states,
)
from tts_verifier.analysis.report.pages import PromptRange
from tts_verifier.analysis.report.sources import Source
from tts_verifier.analysis.report.strip import Strip
from tts_verifier.choice.summary import PromptSummary, Summary, summarise, summarise_prompt
from tts_verifier.errors import InputError
from tts_verifier.log import LoggedPrompts, is_running, read_header
from tts_verifier.types import Cost, Trial


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as the page shows it."""

    name: str
    """The folder's name."""
    anchor: str
    """Its id in the page."""
    running: bool
    """True if the run has not finished."""
    summary: Summary
    judge: str | None
    """The judge's main score; None without a judge."""
    prompts: tuple[PromptRow, ...]
    states: tuple[tuple[SearchState, ...], ...]
    """The states of each prompt's search."""
    categories: tuple[CategoryFigures, ...]
    histograms: tuple[str, ...]
    """SVG, one per score."""
    costs: tuple[tuple[str, int, Cost], ...]
    """(kind of proposal, trials, cost); the last one is the sum."""
    recipe: str
    """YAML."""
    provenance: tuple[tuple[str, str], ...]
    """Device and versions: (name, value)."""

    def chosen(self, measure: str) -> dict[str, float]:
        """Returns prompt text -> the chosen image's objective, or a score of the judge.

        Args:
            measure: "objective", or the name of the judge's score.
        """
        picks = [(r.prompt.text, r.chosen) for r in self.summary.prompts if r.chosen]
        if measure == "objective":
            return {text: pick.objective for text, pick in picks}
        return {text: pick.judge.get(measure, math.nan) for text, pick in picks}


class LoggedRun:
    """A run whose prompts are read one after the other. Not for sharing between threads.

    Args:
        folder: the run folder.
        anchor: its id in the report.

    Raises:
        RunError: the folder is not a run folder, or a file of it is damaged.
        InputError: there is nothing to show.
    """

    def __init__(self, folder: Path, anchor: str) -> None:
        self.folder, self.anchor, self.name = folder, anchor, folder.resolve().name
        self._header, self._logged = read_header(folder), LoggedPrompts(folder)
        if not self._logged.sizes:
            raise InputError(f"{folder} has no verified candidate yet. Report on it later.")
        self.sizes, self.heatmaps = self._logged.sizes, self._logged.heatmaps
        self.judge = main_judge_score(self._logged.judge)
        self._prompts: Iterator[list[Trial]] = iter(self._logged)
        self._figures, self._summaries = RunFigures(), list[PromptSummary]()
        self.rows: list[PromptRow] = []
        """The prompts that were read so far."""
        self._states: list[tuple[SearchState, ...]] = []

    def read(
        self,
        part: PromptRange,
        source: Source,
        kinds: Mapping[str, int],
        strip: Strip | None,
        *,
        maps: bool,
    ) -> Iterator[PromptView]:
        """Yields the views of the next prompts; parts are read in their order.

        Args:
            part: the prompts.
            source: finds the addresses of images on the part's page.
            kinds: kind of heatmap -> its number on the page.
            strip: is told of every prompt; None if runs are compared, which need the chosen
                images once more.
            maps: whether heatmaps are read, to say which mark nothing.
        """
        for number in range(part.start, part.stop):
            trials = next(self._prompts)
            source.prepare(trials)
            view = prompt_view(
                f"{self.anchor}p{number}", trials, source=source, kinds=kinds, read=maps
            )
            self._note(view, trials, part.page, compared=strip is None)
            if strip is not None:
                strip.offer(view, part.page)
            yield view

    def _note(
        self, view: PromptView, trials: Sequence[Trial], page: int, *, compared: bool
    ) -> None:
        summary = summarise_prompt(view.prompt, trials)
        self._summaries.append(summary)
        self._states.append(tuple(search_states(trials)))
        self._figures.add(trials)
        shown = _without_reply(view.chosen.trial) if compared and view.chosen else None
        self.rows.append(
            PromptRow(
                anchor=view.anchor,
                page=page,
                prompt=view.prompt,
                first=summary.first,
                chosen=summary.comparable,
                gain=view.gain,
                shown=shown,
            )
        )

    def view(self) -> RunView:
        """Returns the whole run, once all its parts were read."""
        summary, about = summarise(self._summaries), self._header["about"]
        recipe = (about.get("recipe") if isinstance(about, Mapping) else None) or about
        return RunView(
            name=self.name,
            anchor=self.anchor,
            running=is_running(self.folder),
            summary=summary,
            judge=self.judge,
            prompts=tuple(self.rows),
            states=tuple(self._states),
            categories=tuple(categories(summary, self.judge)),
            histograms=tuple(self._figures.histograms(summary)),
            costs=tuple(self._figures.cost_rows()),
            recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
            provenance=_provenance(self._header),
        )


def _without_reply(trial: Trial) -> Trial:
    verdict = trial.verdict
    return trial if verdict is None else replace(trial, verdict=replace(verdict, text=""))


def _provenance(header: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    versions = header.get("versions")
    values = {
        "device": header.get("device"),
        "git revision": header.get("git_revision"),
        "python": header.get("python"),
        **(versions if isinstance(versions, Mapping) else {}),
    }
    return tuple((name, str(value)) for name, value in values.items() if value)
