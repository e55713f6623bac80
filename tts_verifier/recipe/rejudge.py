"""Verifies a recorded run's candidates again, with another verifier, judge or objective.

The recorded run stands in for the generator and the strategy of a new run. Nothing is generated;
the new run folder gets copies of the image files, since no run folder refers to another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tts_verifier.errors import InputError, RunError
from tts_verifier.interfaces import Rewriter, RewriteRequest
from tts_verifier.log import HEADER, read_header, read_trials, repeat_of, table_folders
from tts_verifier.types import (
    KINDS,
    Budget,
    CachedDrafts,
    Compare,
    Drafts,
    InFile,
    Job,
    LowBand,
    Near,
    Proposal,
    Rewrite,
    Rewritten,
    Sample,
    Setting,
    State,
    Task,
    Trial,
)


class RecordedGenerator:
    """A run folder as a generator: returns the recorded image for each job.

    Safe to share between threads: nothing changes after construction.

    Args:
        folder: the recorded run's folder.
        new_folder: the new run's folder.

    Raises:
        RunError: `folder` is not a run folder, or is the new run's own.
        InputError: the recorded run has no verified candidate.
    """

    supports: frozenset[type] = frozenset(
        {*KINDS.values(), Near, LowBand, Rewritten, Drafts, CachedDrafts}
    )
    batch_size = 8

    def __init__(self, folder: Path, new_folder: Path) -> None:
        if folder.resolve() == new_folder.resolve():
            raise RunError(
                "A run that verifies candidates again needs a folder of its own, and "
                f"{new_folder} is the recorded run's. Give another with --output."
            )
        if not (folder / HEADER).is_file():
            raise RunError(
                f"A run that verifies candidates again needs a folder that tts-run has written, "
                f"and {folder} has no {HEADER}. Check the path."
            )
        # Trial ids derive from the generator's settings, so equal settings keep the ids.
        self.settings = _settings_in(folder)
        self.trials = read_trials(folder)
        if not self.trials:
            raise InputError(f"{folder} has no verified candidate yet. Try again later.")
        first: dict[str, Trial] = {}
        for trial in self.trials:
            first.setdefault(trial.prompt.id, trial)
        self.prompts = tuple(
            replace(trial.prompt, repeat=repeat_of(trial, self.settings))
            for trial in first.values()
        )
        self._by_id = {trial.id: trial for trial in self.trials}
        self._folder, self._new_folder = folder.resolve(), new_folder.resolve()

    @property
    def place(self) -> Path:
        """The recorded run's folder, relative to the new one's."""
        return Path(os.path.relpath(self._folder, self._new_folder))

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Returns each job's recorded image, or the recorded reason why there is none.

        Raises:
            RunError: an image file is missing or was changed.
        """
        return [self._sample(job) for job in jobs]

    def _sample(self, job: Job) -> Sample:
        trial = self._by_id.get(job.id)
        if trial is None:
            raise RunError(
                f"{self._folder / HEADER} must name the settings that its candidates were "
                f"generated with, and names others: no candidate is {job.id}."
            )
        if not isinstance(trial.image, InFile):
            return Sample(job, None, trial.progress, error=trial.error)
        # The runner wants a state for an unfinished image; nothing will ever continue it.
        state: State | None = {} if trial.progress < 1 else None
        # The new verifier's cost is added to what generating the image took then.
        cost = replace(trial.cost, verifier_calls=0, verify_seconds=0.0)
        return Sample(job, trial.image.load(), trial.progress, cost, state, stored=trial.image)


def _settings_in(folder: Path) -> Mapping[str, Setting]:
    """Returns the settings of a recorded run's generator, as its header says them."""
    read_header(folder)
    # The shards of a run have equal settings. Without a shard there is no candidate.
    places = table_folders(folder)
    settings = read_header(places[0])["about"].get("generator") if places else {}
    if not isinstance(settings, dict) or not all(map(_is_setting, settings.values())):
        raise RunError(
            f"{folder / HEADER} must name the settings of the generator, each one text, number or "
            f"truth value, got {settings!r:.200}. Its candidates cannot be verified again."
        )
    return settings


def _is_setting(value: object) -> bool:
    # By exact type, because bool is an int.
    return type(value) in (str, bool, float, type(None)) or (
        isinstance(value, int) and -(2**63) <= value < 2**63
    )


class Proposed:
    """A strategy that proposes what a recorded run proposed, round by round.

    Safe to share between threads: nothing changes after construction.
    """

    # The header of the log records this class's name: under another name, such runs cannot be
    # continued. It also records a strategy's `__dict__`; slots keep the proposals out of it.
    __slots__ = ("_rounds", "_texts")
    needs: frozenset[type] = frozenset()

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._texts: dict[str, str] = {}
        self._rounds: dict[str, dict[int, list[Proposal]]] = {}
        for trial in trials:
            if isinstance(trial.proposal, Compare):
                # The new run makes its own comparisons, if it is to make any.
                continue
            if isinstance(trial.proposal, Rewrite) and trial.verdict is not None:
                self._texts[trial.proposal.parent] = trial.verdict.text
            rounds = self._rounds.setdefault(trial.prompt.id, {})
            rounds.setdefault(trial.round, []).append(trial.proposal)

    settings: Mapping[str, Setting] = {"rewriter": "recorded"}

    @property
    def rewriter(self) -> Rewriter:
        """Itself: it knows the recorded texts."""
        return self

    def rewrite(self, requests: Sequence[RewriteRequest]) -> list[str]:
        """Returns the recorded text of each request, "" where none was made."""
        return [self._texts.get(request.trial.id, "") for request in requests]

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Returns the recorded proposals of the round after the last one in the history."""
        rounds = self._rounds.get(task.prompt.id, {})
        # The recorded numbers may have gaps where comparisons were.
        number = len({trial.round for trial in history})
        return rounds[sorted(rounds)[number]] if number < len(rounds) else []


def recorded_parts(recorded: RecordedGenerator) -> dict[str, Any]:
    """Returns the parts of a run that verifies a recorded one again, in place of a recipe's."""
    strategy = Proposed(recorded.trials)
    return {"generator": recorded, "strategy": strategy, "budget": Budget()}


def rejudged(resolved: Mapping[str, Any], recorded: RecordedGenerator) -> dict[str, Any]:
    """Returns what a resolved recipe says of such a run: the sections that it uses."""
    again = (
        *("verifier", "judge", "objective", "detail"),
        *("looks", "ties", "near", "comparer"),
    )
    used = {name: resolved[name] for name in again if name in resolved}
    return {**used, "rejudge": str(recorded.place)}
