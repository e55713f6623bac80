"""Runs a recipe and leaves a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tts_verifier.analysis.contact_sheet import write_chosen, write_subsets
from tts_verifier.choice.summary import Summary, summarise
from tts_verifier.choice.summary_output import summary_text, summary_values
from tts_verifier.errors import InputError
from tts_verifier.loading.regular_files import output_path, user_path
from tts_verifier.log import read_errors
from tts_verifier.recipe.recipe import Recipe
from tts_verifier.recipe.rejudge import RecordedGenerator, recorded_parts, rejudged
from tts_verifier.runner import RunResult, execute
from tts_verifier.runner.progress import Progress
from tts_verifier.types import InFile


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a recipe's run."""

    summary: Summary
    """Scores, costs and the choice of each prompt."""
    folder: Path
    """The run folder: the log, the chosen images and a sheet of them."""
    failure: str = ""
    """Why no candidate of any prompt is usable; empty if one is."""
    sets: Path | None = None
    """The folder of the sets; None if none were asked for."""

    def __str__(self) -> str:
        """Returns the text for a terminal."""
        lines = [summary_text(self.summary), f"chosen images: {self.folder / 'chosen.png'}"]
        lines += [f"sets: {self.sets}"] if self.sets else []
        return "\n".join([*lines, f"log: {self.folder}"])

    def as_json(self) -> str:
        """Returns one line of JSON."""
        values = {"event": "result", "folder": str(self.folder), **summary_values(self.summary)}
        for row in self.summary.prompts:
            image = row.chosen and row.chosen.image
            if isinstance(image, InFile):
                # Of a run in shards, the row's path is relative to the shard.
                place = os.path.realpath(image.folder / image.path)
                path = Path(os.path.relpath(place, os.path.realpath(self.folder))).as_posix()
                values["prompts"][row.prompt.id]["image"] = path
        return json.dumps(values, ensure_ascii=False)


def run_recipe(
    recipe: Recipe,
    *,
    output: Path | None = None,
    rejudge: Path | None = None,
    subset: int | None = None,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> Outcome:
    """Runs a recipe. The run folder gets the log, the chosen images and a sheet of them.

    Args:
        recipe: from `load_recipe`.
        output: run folder; None = the recipe's.
        rejudge: a run folder. Its candidates are verified again with the recipe's verifier, judge
            and objective; the recipe's generator, strategy, budget and prompts are not used.
        subset: how many good and different images of each prompt to write as well, into
            `sets_of_K/`; None = none.
        say: receives the resolved recipe as YAML, to show to the user.
        progress: counts and displays the progress; None = no display.

    Raises:
        TTSError: a part cannot be built, or the run folder cannot be used.
        InputError: the recipe is for several processes.
    """
    if recipe.parallel is not None:
        raise InputError(
            "A recipe with `parallel` is run by tts_verifier.parallel.run_parallel, or by tts-run. "
            "Leave out parallel to run it in one process."
        )
    resolved, prompts = recipe.resolved(), recipe.prompts
    folder = output_path(output or recipe.output)
    parts: dict[str, Any] = {}
    if rejudge is not None:
        recorded = RecordedGenerator(user_path(rejudge), folder)
        parts = recorded_parts(recorded)
        resolved = rejudged(resolved, recorded)
        prompts = recorded.prompts
    say(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    setup = recipe.build(**parts)
    result = execute(setup, prompts, folder=folder, progress=progress, recipe=resolved)
    return finish(result, folder, folder / "trials.parquet", subset)


def finish(result: RunResult, folder: Path, table: Path, subset: int | None) -> Outcome:
    """Writes the chosen images and the sets of a run, and sums it up.

    Args:
        result: the run's.
        folder: the run folder.
        table: the file or files with the log's rows, for the message if no candidate is usable.
        subset: as in `run_recipe`.
    """
    summary = summarise(result.summaries)
    write_chosen(summary.prompts, folder)
    sets = None if subset is None else write_subsets(result.subsets(subset), subset, folder)
    return Outcome(summary, folder, _failure_of(folder, summary, table), sets)


def _failure_of(folder: Path, summary: Summary, table: Path) -> str:
    """Returns why no candidate of a run is usable, "" if one is; `table` has the reasons."""
    if any(row.chosen is not None for row in summary.prompts):
        return ""
    none = f"none of {summary.candidates}"
    reasons = read_errors(folder)
    if not reasons:
        return (
            f"A run needs a candidate that is finished, and {none} is. Give the run a larger "
            "budget; if it verifies another run again, give that run's own command first."
        )
    return (
        f"A run needs a candidate that can be chosen, and {none} can: "
        f"{reasons.most_common(1)[0][0]}. The column error of {table} has the reasons; "
        "mend them and give the command with another --output."
    )
