"""The options of `run` and of wrapped pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from tts_verifier.choice.objective import Objective
from tts_verifier.interfaces import Comparer, Verifier
from tts_verifier.types import Budget, Detail


class SearchOptions(TypedDict, total=False):
    """The options that runs and wrapped pipelines share; every key may be absent."""

    objective: Objective | Mapping[str, float] | None
    """What the search maximises; None = the verifier's own. See `RunSetup` for all of these."""
    budget: Budget
    """The limits for each prompt, such as `Budget(candidates=8)`."""
    judge: Verifier | None
    """A held-out verifier that measures the result; no strategy sees its scores."""
    detail: Detail | None
    """How thoroughly candidates are verified: "score" or "diagnose"."""
    looks: int
    """How many of the best images of each prompt are diagnosed once its search has ended."""
    ties: int
    """How many of the best images of a prompt are compared in pairs in the end: 0, or 2 or more."""
    near: float
    """How far below the best objective an image may be and still be compared."""
    comparer: Comparer | None
    """Compares images in pairs; None = the verifier does it."""
    overlap: bool | None
    """Whether a thread verifies a batch while the next one is generated; None = if that helps."""


class RunOptions(SearchOptions, total=False):
    """The options of `run`; every key may be absent."""

    seed: int
    """The seed that all others are derived from."""
    folder: str | Path | None
    """The run folder, to start or to continue; None = no log."""
    progress: bool
    """Whether to show the progress."""
