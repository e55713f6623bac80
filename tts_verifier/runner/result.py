"""What a run ends with: in memory, or in its folder until somebody asks.

With a log, a run keeps only some numbers and ids of a finished prompt: 17 bytes a trial, so
that memory hardly grows with the number of trials.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from tts_verifier.choice.objective import choose
from tts_verifier.choice.summary import PromptSummary, summarise_prompt
from tts_verifier.errors import RunError
from tts_verifier.log import read_picks, read_trials
from tts_verifier.types import Choice, Prompt, Trial


@dataclass(frozen=True, slots=True, eq=False)
class PromptResult:
    """A prompt whose search is over."""

    summary: PromptSummary
    """Lacks `first` and `chosen` where the trials are in the log."""
    first: str
    """The id of the first finished trial, "" if there is none."""
    chosen: str
    """The id of the chosen trial, "" if there is none."""
    ids: str
    """The ids of all trials, with spaces between: one text takes less than a list."""
    trials: tuple[Trial, ...] | None
    """None where they are in the log."""

    @classmethod
    def of(cls, prompt: Prompt, history: Sequence[Trial], *, logged: bool) -> PromptResult:
        """Makes the result of a search from all its trials, round by round."""
        summary = summarise_prompt(prompt, history)
        first, chosen = (pick.id if pick else "" for pick in (summary.first, summary.chosen))
        ids = " ".join(trial.id for trial in history)
        if not logged:
            return cls(summary, first, chosen, ids, tuple(history))
        return cls(replace(summary, first=None, chosen=None), first, chosen, ids, None)


class RunResult:
    """What a run ends with. Trials and images of a run with a log are read when asked for."""

    def __init__(
        self, results: Sequence[PromptResult], folder: Path | None, busy: Mapping[str, float]
    ) -> None:
        self._results = results
        self.folder = folder
        """The run folder, None when there is no log."""
        self.busy = busy
        """"generate" and "verify" -> the fraction of the run's time that went into it; together
        more than 1 when the two overlap."""

    @cached_property
    def summaries(self) -> list[PromptSummary]:
        """What was achieved for each prompt, in the order of the prompts.

        Raises:
            RunError: the folder is damaged.
        """
        if self.folder is None:
            return [one.summary for one in self._results]
        ids = {name for one in self._results for name in (one.first, one.chosen)}
        picks = read_picks(self.folder, ids)
        _check_there(self.folder, ids - {""}, picks)
        return [
            replace(one.summary, first=picks.get(one.first), chosen=picks.get(one.chosen))
            for one in self._results
        ]

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, prompt by prompt, round by round; read from the folder if there is one.

        Raises:
            RunError: the folder is damaged.
        """
        if self.folder is None:
            return tuple(trial for one in self._results for trial in one.trials or ())
        by_id = {trial.id: trial for trial in read_trials(self.folder)}
        ids = [name for one in self._results for name in one.ids.split()]
        _check_there(self.folder, ids, by_id)
        return tuple(by_id[name] for name in ids)

    @cached_property
    def choices(self) -> Mapping[str, Choice]:
        """The choices by prompt id; reads all trials."""
        by_prompt: dict[str, list[Trial]] = {one.summary.prompt.id: [] for one in self._results}
        for trial in self.trials:
            by_prompt[trial.prompt.id].append(trial)
        return {name: choose(some) for name, some in by_prompt.items()}

    @property
    def images(self) -> dict[str, Image.Image]:
        """The chosen images by prompt id; a prompt without a usable one is absent."""
        chosen = {row.prompt.id: row.chosen for row in self.summaries}
        return {n: t.image.load() for n, t in chosen.items() if t is not None and t.image}


def _check_there(folder: Path, ids: Iterable[str], found: Container[str]) -> None:
    gone = [name for name in ids if name not in found]
    if gone:
        raise RunError(
            f"{folder} must still hold what the run wrote, and lacks trial {gone[0]}. Keep the "
            "folder where it was, or read the results before it goes."
        )
