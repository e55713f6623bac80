"""A run folder that a campaign damages, and what a damage is."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Scene(NamedTuple):
    """A folder to damage, and what lies beside it."""

    folder: Path
    decoy: Path
    """Files that must not change."""
    foreign: Path
    """A finished run folder of other seeds."""
    foreign_broken: Path
    """An interrupted one."""
    dice: random.Random


class Damage(NamedTuple):
    """One way to damage a folder."""

    apply: Callable[[Scene], None]
    forged: bool = False
    """Whether somebody wrote other values and digests that fit: nobody can know the right ones."""
    may_refuse: bool = False
    """Whether `tts-run` may refuse the folder instead of repairing it."""


def damage(
    damages: dict[str, Damage], name: str, **options: bool
) -> Callable[[Callable[[Scene], None]], None]:
    """Registers the decorated function as a damage of a name."""

    def note(function: Callable[[Scene], None]) -> None:
        damages[name] = Damage(function, **options)

    return note


MADE = ("images/*", "heatmaps/*", "masks/*", "states/*")
TABLES = ("parts/*.parquet", "trials.parquet")


def files_of(scene: Scene, *patterns: str) -> list[Path]:
    """Returns the files of the folder that match one of the patterns, sorted."""
    return sorted(p for pattern in patterns for p in scene.folder.glob(pattern) if p.is_file())


def some_file(scene: Scene, *patterns: str) -> Path | None:
    """Returns a random one of these files; None if there is none."""
    found = files_of(scene, *patterns)
    return scene.dice.choice(found) if found else None


def clear(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
