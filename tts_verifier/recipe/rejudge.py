"""A run's pictures under another verifier or objective: the same candidates, nothing drawn.

The recorded run takes the generator's and the strategy's place in a search of its own. The
new run folder refers to the pictures of the old one and copies none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tts_verifier.errors import InputError, RunError
from tts_verifier.identity import trial_id
from tts_verifier.log import read_header, read_trials
from tts_verifier.types import (
    KINDS,
    InFile,
    Job,
    LowBand,
    Near,
    Proposal,
    Sample,
    Setting,
    State,
    Task,
    Trial,
)


class Recorded:
    """A run folder as a generator: gives for every job the picture that is there.

    Args:
        folder: the recorded run's.
        into: the new run's folder, from which pictures are referred to.

    Raises:
        RunError: the folder is not a run's, or is the new run's own.
    """

    supports: frozenset[type] = frozenset({*KINDS.values(), Near, LowBand})
    batch_size = 8

    def __init__(self, folder: Path, into: Path) -> None:
        if folder.resolve() == into.resolve():
            raise RunError(
                f"A run is judged again into a folder of its own, {into} is that of the run. "
                "Give another with --output."
            )
        about = read_header(folder)["about"]
        self.settings: Mapping[str, Setting] = about["generator"]
        self.trials = read_trials(folder)
        if not self.trials:
            raise InputError(f"{folder} has no judged candidate yet. Judge it again later.")
        self.prompts = tuple({t.prompt.id: t.prompt for t in self.trials}.values())
        self._by_id = {trial.id: trial for trial in self.trials}
        self._folder, self._into = folder.resolve(), into.resolve()

    @property
    def place(self) -> Path:
        """The recorded run's folder, relative to the new one's."""
        return Path(os.path.relpath(self._folder, self._into))

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Returns the pictures, or the reason why there was none."""
        return [self._sample(job) for job in jobs]

    def _sample(self, job: Job) -> Sample:
        trial = self._by_id[trial_id(job.prompt.text, job.proposal, self.settings)]
        if not isinstance(trial.image, InFile):
            return Sample(job, None, trial.progress, error=trial.error)
        # By way of the file's own place: the recorded run may itself refer to another's.
        path = os.path.relpath(self._folder / trial.image.path, self._into)
        image = InFile(self._into, Path(path).as_posix(), trial.image.sha256, trial.image.decoder)
        # Nothing is carried on from here, so that an empty state is state enough.
        state: State | None = {} if trial.progress < 1 else None
        cost = replace(trial.cost, verifier_calls=0, verify_seconds=0.0)
        return Sample(job, image.load(), trial.progress, cost, state, stored=image)


class Proposed:
    """The proposals of a recorded run, round by round, as a strategy."""

    needs: frozenset[type] = frozenset()
    __slots__ = ("_rounds",)

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._rounds: dict[str, dict[int, list[Proposal]]] = {}
        for trial in trials:
            rounds = self._rounds.setdefault(trial.prompt.id, {})
            rounds.setdefault(trial.round, []).append(trial.proposal)

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Returns the next round's proposals that were served."""
        done = 1 + max((trial.round for trial in history), default=-1)
        return self._rounds[task.prompt.id].get(done, [])
