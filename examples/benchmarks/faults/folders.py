"""Damaged and hostile run folders, through resume, report, replay, rejudge and the readers.

A case copies a small run folder, whole or interrupted, damages it in one way or two, and gives it
to one command. Nothing outside the folder may change, whatever the folder says. What `tts-run`
continues must end with the rows and files of an uninterrupted run; what is read must be true; or
there is an error of the package. Where a damage is a forgery with digests that fit, only what
happens outside the folder, and how the command ends, is judged.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from faults import damages, runs
from faults.decoy import Decoy
from faults.harness import Result, expect, of_kind
from faults.scene import Damage, Scene
from tts_verifier.errors import RunError
from tts_verifier.log import read_header, read_picks, read_rows, read_trials

DEFAULT_CASES = 2_000
LIMIT = 30.0
COMMANDS = ("resume", "resume", "resume", "report", "report --inline", "replay", "rejudge", "read")

_shared: dict[str, Any] = {}


class Origin(NamedTuple):
    """A run folder that cases copy."""

    folder: Path
    recipe: Path
    whole: dict[str, dict[str, Any]]
    """The rows of the uninterrupted run."""


def prepare(home: Path) -> None:
    """Makes a whole and an interrupted run of every strategy, and a run that is foreign to them."""
    origins = _shared["origins"] = []
    with runs.no_waiting_for_the_disk():
        for strategy in runs.STRATEGIES:
            for overlap in (False, True):
                name = f"{strategy}{'_overlap' if overlap else ''}"
                recipe = runs.write_recipe(home / f"{name}.yaml", strategy, overlap=overlap)
                folder = runs.make_run(home / "origins" / name, recipe)
                whole = runs.rows_by_id(folder)
                origins.append(Origin(folder, recipe, whole))
                broken = runs.make_run(home / "origins" / f"{name}_broken", recipe, batches=2)
                origins.append(Origin(broken, recipe, whole))
        other = runs.write_recipe(home / "foreign.yaml", "best_of_n", seed=77)
        _shared["foreign"] = runs.make_run(home / "origins" / "foreign", other)
        _shared["foreign_broken"] = runs.make_run(
            home / "origins" / "foreign_broken", other, batches=2
        )
    _shared["decoy"] = Decoy(home / "decoy")


def case(number: int, dice: random.Random, home: Path) -> Result:
    """Damages a copy of a folder and gives it to a command."""
    origin: Origin = dice.choice(_shared["origins"])
    # Links to what is beside the folder are the point of some cases.
    folder = home / "case" / "run"
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(origin.folder, folder, symlinks=True)
    scene = Scene(
        folder, _shared["decoy"].root, _shared["foreign"], _shared["foreign_broken"], dice
    )
    name = dice.choice(list(damages.DAMAGES))
    damage = damages.DAMAGES[name]
    with of_kind(name):
        damage.apply(scene)
        what = dice.choice(COMMANDS)
        with runs.no_waiting_for_the_disk():
            result = _carry_out(what, folder, origin, damage, home)
    return result._replace(kind=name, detail=f"{what} of {origin.folder.name}: {result.detail}")


def _carry_out(what: str, folder: Path, origin: Origin, damage: Damage, home: Path) -> Result:
    true = origin.whole if not damage.forged else None
    try:
        if what == "resume":
            runs.command("run", origin.recipe, "--quiet", "--output", folder)
            if true is not None:
                runs.check_finished(folder, true)
        elif what.startswith("report"):
            page = home / "page.html" if "inline" in what else folder / "report.html"
            runs.command("report", folder, *what.split()[1:], "--output", page)
        elif what == "replay":
            runs.command("replay", folder)
        elif what == "rejudge":
            again = folder.parent / "again"
            runs.command("run", origin.recipe, "--quiet", "--rejudge", folder, "--output", again)
            if true is not None:
                _check_true(runs.rows_by_id(again), true)
        else:
            _read(folder, true)
    except (runs.RefusedError, RunError) as error:
        # An interrupted run of partial images may have none that can be chosen: status 3.
        unfinished = what == "rejudge" and "that is finished" in str(error)
        refused = isinstance(error, RunError) or error.code == 2 or unfinished
        may = damage.may_refuse or what != "resume"
        outcome = "refused" if refused and may else "wrong"
        return Result("", outcome, str(error))
    return Result("", "right")


def _read(folder: Path, true: dict[str, dict[str, Any]] | None) -> None:
    """Reads all that there is to read; raises WrongError where it is not the truth."""
    read_header(folder)
    rows, trials = read_rows(folder), read_trials(folder)
    read_picks(folder, [row["trial_id"] for row in rows])
    if true is not None:
        _check_true(runs.rows_by_id(folder), true)
    for trial in trials:
        stored = [trial.image, trial.state, *trial.verdict.heatmaps.stored.values()]
        for value in stored:
            if value is None:
                continue
            try:
                value.load()
            except RunError:
                continue
            path = os.path.join(folder, value.path)
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            expect(digest == value.sha256, f"{value.path} was changed and is read")


def _check_true(found: dict[str, dict[str, Any]], true: dict[str, dict[str, Any]]) -> None:
    """Raises WrongError where rows are not those of the run, as far as they can be."""
    late = {*runs.LATE, *runs.CLOCK, "image_path", "verifier_calls"}
    for name, row in found.items():
        expect(name in true, f"{name} is no trial of this run")
        differ = [k for k in row if k not in late and row[k] != true[name].get(k)]
        # A look that is verified again, and what a later batch brought.
        expect(not [k for k in differ if k in true[name]], f"{name} differs in {differ}")
