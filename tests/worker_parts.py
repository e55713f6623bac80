"""Parts that workers build by name: they note what they do in a file, and die on demand."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tts_verifier.errors import CheckpointError
from tts_verifier.recipe import Recipe, load_recipe
from tts_verifier.recipe.sections import Section
from tts_verifier.testing import FakeGenerator
from tts_verifier.types import Job, Sample


class TracedGenerator(FakeGenerator):
    """Writes a line for each time that it is built, and one for each image before it is drawn.

    Args:
        trace: the file.
        batch_size: jobs per batch.
        seconds: that a batch takes.
        dies_on: a prompt with this text in it kills the process.
        dies_once: a file; the first process that does not find it makes it and dies.
        hangs_once: a file; the first process that does not find it makes it and hangs.
        broken: a message; building fails with it.
    """

    def __init__(
        self,
        trace: str,
        batch_size: int = 4,
        seconds: float = 0.0,
        dies_on: str = "",
        dies_once: str = "",
        hangs_once: str = "",
        broken: str = "",
    ) -> None:
        super().__init__(batch_size)
        if broken:
            raise CheckpointError(broken)
        self._trace, self._seconds = trace, seconds
        self._dies_on, self._dies_once = dies_on, dies_once
        self._hangs_once = hangs_once
        self._note("built", "")

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        for job in jobs:
            self._note("drew", job.id)
        if self._dies_on and any(self._dies_on in job.prompt.text for job in jobs):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._dies_once and makes(Path(self._dies_once)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._hangs_once and makes(Path(self._hangs_once)):
            signal.pause()
        time.sleep(self._seconds)
        return super().generate(jobs)

    def _note(self, what: str, about: str) -> None:
        with open(self._trace, "a", encoding="utf-8") as file:
            file.write(f"{what} {os.getpid()} {about}\n")


def makes(path: Path) -> bool:
    """Makes a file; returns whether it was not there. Of several processes one makes it."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def ignores_ctrl_c(died: Path) -> bool:
    """Is work that kills the first process that has it; returns whether the next ignores Ctrl-C.

    It must do so from its first moment, which a signal that is blocked shows.
    """
    if makes(died):
        os.kill(os.getpid(), signal.SIGKILL)
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return blocked and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def traced_recipe(folder: Path, *overrides: str, prompts: int = 10, **options: object) -> Recipe:
    """Returns the recipe `fake` with many prompts and a traced generator."""
    texts = [f"prompt {number}" for number in range(prompts)]
    recipe = load_recipe("fake", [f"prompts={texts}", f"output={folder}/run", *overrides])
    values = {"trace": f"{folder}/trace", **options}
    generator = Section(TracedGenerator, values, "test", {}, "fake")
    return replace(recipe, sections={**recipe.sections, "generator": generator})


def traced(folder: Path, what: str) -> list[Sequence[str]]:
    """Returns (process, trial id) for each line of the trace about `what`."""
    lines = (folder / "trace").read_text().splitlines() if (folder / "trace").exists() else []
    return [line.split(" ")[1:] for line in lines if line.startswith(f"{what} ")]


def choices(folder: Path) -> Mapping[str, bool]:
    """Returns trial id -> whether it is chosen, of all rows of a run folder."""
    from tts_verifier.log import read_rows

    rows = read_rows(folder)
    assert len({row["trial_id"] for row in rows}) == len(rows)
    return {row["trial_id"]: row["chosen"] for row in rows}
