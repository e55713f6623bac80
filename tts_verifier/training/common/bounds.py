"""The largest values of keys that count something: a slip must not exhaust a machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from torch import nn

from tts_verifier.errors import InputError

LARGEST_STEP: Final = 65_536
"""The most rows of a step, over all processes."""
PROCESSES_OF_A_CORE: Final = 32
"""The most of them: those that wait for an API need little of a core."""


def check_most(name: str, value: int | None, most: int, what: str) -> None:
    """Checks a key that counts something; None counts nothing.

    Args:
        name: of the key.
        value: of the key.
        most: its largest value.
        what: says in the error what the largest value is.

    Raises:
        InputError: the value is larger.
    """
    if value is not None and value > most:
        raise InputError(f"{name} must be at most {most}, {what}, got {value}.", argument=name)


def check_group(prompts: int, group: int) -> None:
    """Raises InputError if `prompts` times `group` are more rows than a step may have."""
    rows = f"has {LARGEST_STEP} rows at most"
    check_most("prompts", prompts, LARGEST_STEP // 2, f"so that a step {rows}")
    most = LARGEST_STEP // prompts
    check_most("group", group, most, f"so that a step of {prompts} prompts {rows}")


def check_processes(name: str, value: int) -> None:
    """Raises InputError if a key asks for more processes than the cores of this machine can run."""
    most = PROCESSES_OF_A_CORE * (os.cpu_count() or 1)
    check_most(name, value, most, f"{PROCESSES_OF_A_CORE} for each core of this machine")


def check_rank(rank: int, layers: Iterable[nn.Module]) -> None:
    """Raises InputError if `lora_rank` is above the rank of all layers that are to be adapted."""
    sides = [min(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)]
    most = max(sides, default=rank)
    what = "the rank of the largest layer that it adapts (0 trains whole layers)"
    check_most("lora_rank", rank, most, what)
