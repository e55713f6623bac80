"""Small run folders on the fakes, whole and interrupted, that the campaigns damage and kill."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from faults.harness import expect
from tts_verifier.log import read_rows
from tts_verifier.testing import FakeGenerator
from tts_verifier.types import Job, Sample

CLOCK = ("generate_seconds", "verify_seconds")
"""Columns that differ from run to run."""
LATE = ("chosen", "state_path", "state_sha256")
"""Columns that the end of a run fills in."""
MASKS = {"threshold": "quantile", "level": 0.9, "area": [0.0, 1.0]}
"""The fakes' maps are warm everywhere: only their hottest tenth is repainted."""
STRATEGIES: dict[str, dict[str, Any]] = {
    "best_of_n": {"name": "best_of_n", "n": 5},
    "inpaint_reroll": {"name": "inpaint_reroll", "n": 2, "rounds": 3, "masks": MASKS},
    "seed_beam": {"name": "seed_beam"},
}
PROMPTS = ("a red circle", "a blue star")


class Stopped(BaseException):
    """Stands for the end of a process."""


def write_recipe(path: Path, strategy: str, **values: Any) -> Path:
    """Writes the recipe of a small run, without a judge."""
    recipe = {
        "generator": {"name": "fake", "batch_size": 4},
        "verifier": {"name": "fake"},
        "strategy": STRATEGIES[strategy],
        "prompts": list(PROMPTS),
        **values,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return path


def command(name: str, *arguments: object) -> str:
    """Runs `tts-NAME` in this process and returns what it printed.

    Raises:
        RefusedError: it ended with a message of its own.
        Exception: whatever it does not handle.
    """
    target = getattr(import_module(f"tts_verifier.cli.{name}"), f"{name}_command")
    done = CliRunner().invoke(target, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code:
        raise RefusedError(done.exit_code, done.output)
    return done.output


class RefusedError(Exception):
    """A command ended with a message and an exit code."""

    def __init__(self, code: int, output: str) -> None:
        super().__init__(f"exit code {code}: {output.strip()[-300:]}")
        self.code, self.output = code, output


@contextmanager
def no_waiting_for_the_disk() -> Iterator[None]:
    """A killed process loses nothing that it wrote, flushed or not."""
    before, os.fsync = os.fsync, lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = before


@contextmanager
def stopping_after(batches: int) -> Iterator[None]:
    """Ends a run at its next batch after so many."""
    generate, left = FakeGenerator.generate, iter(range(batches))

    def generate_or_stop(self: FakeGenerator, jobs: Sequence[Job]) -> list[Sample]:
        if next(left, None) is None:
            raise Stopped
        return generate(self, jobs)

    FakeGenerator.generate = generate_or_stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        FakeGenerator.generate = generate  # type: ignore[method-assign]


def make_run(folder: Path, recipe: Path, *, batches: int | None = None) -> Path:
    """Runs a recipe, to its end or for so many batches."""
    shutil.rmtree(folder, ignore_errors=True)
    if batches is None:
        command("run", recipe, "--quiet", "--output", folder)
        return folder
    with stopping_after(batches):
        try:
            command("run", recipe, "--quiet", "--output", folder)
        except Stopped:
            return folder
    raise AssertionError(f"{folder} has only {batches} batches")


def rows_by_id(folder: Path, *, dropped: Sequence[str] = CLOCK) -> dict[str, dict[str, Any]]:
    """Returns the rows on the disk without times and nulls, by trial id; none may be there twice.

    Nulls say nothing: a column that a later batch brought is null in the rows before it.
    """
    rows = read_rows(folder)
    by_id = {
        row["trial_id"]: {k: v for k, v in row.items() if k not in dropped and v is not None}
        for row in rows
    }
    expect(len(by_id) == len(rows), f"{len(rows)} rows of {len(by_id)} trials")
    return by_id


def check_finished(folder: Path, whole: dict[str, dict[str, Any]]) -> None:
    """Raises WrongError unless a finished folder has the rows of another, and their files."""
    found = rows_by_id(folder)
    missing, more = sorted(whole.keys() - found.keys()), sorted(found.keys() - whole.keys())
    expect(not missing and not more, f"missing {missing[:3]}, too many {more[:3]}")
    for name, row in whole.items():
        columns = [c for c in row.keys() | found[name].keys() if row.get(c) != found[name].get(c)]
        expect(not columns, f"{name} differs in {columns[:4]}")
    for row in found.values():
        for column in (c for c in row if c.endswith("_path") and c != "mask_path"):
            content = (folder / row[column]).read_bytes()
            fits = hashlib.sha256(content).hexdigest() == row[column.replace("_path", "_sha256")]
            expect(fits, f"{row[column]} is not the file that its row names")
    # A link or a folder that somebody put there may stay: it is never written, nor in the way.
    drafts = [p.relative_to(folder).as_posix() for p in folder.glob("drafts/*")]
    names = ("lock", "trials.new", *drafts)
    left = [n for n in names if (folder / n).is_file() and not (folder / n).is_symlink()]
    expect(not left, f"left behind: {left}")
