"""The options that all judges on small networks share, and how such a judge is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from tts_verifier.errors import InputError
from tts_verifier.interfaces import Verifier


class JudgeOptions(TypedDict, total=False):
    """Where and how a judge computes; every key may be absent."""

    device: str | int | None
    """None = the GPU if there is one."""
    dtype: str | None
    """Of the weights; None = float32, in which the figures of the official code hold."""
    batch_size: int
    """Pictures at a time; it is halved when memory runs out."""
    revision: str | None
    """Branch, tag or commit of a hub id."""


class NamedCheckpoint(Verifier):
    """A judge whose constructor takes a checkpoint first."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path, **options: Unpack[JudgeOptions]
    ) -> Self:
        """Loads a judge from a folder or a hub id; its own options are arguments of the class."""
        judge: Any = cls
        loaded: Self = judge(name_or_path, **options)
        return loaded


def check_flags(**flags: object) -> None:
    """Raises InputError for a flag that is neither true nor false; "no" would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, got {value!r:.80}.", argument=name)
