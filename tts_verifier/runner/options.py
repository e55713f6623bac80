"""The options of a search, as users type them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from tts_verifier.choice.objective import Objective
from tts_verifier.interfaces import Comparer, Verifier
from tts_verifier.types import Budget, Detail


class SearchOptions(TypedDict, total=False):
    """What a run and a wrapped pipeline take besides their parts; every key may be absent."""

    objective: Objective | Mapping[str, float] | None
    """What the search maximises; None = the verifier's own. See `RunSetup` for all of these."""
    budget: Budget
    """The limits for each prompt, such as `Budget(candidates=8)`."""
    judge: Verifier | None
    """A held-out verifier that measures the result; no strategy sees its scores."""
    detail: Detail | None
    """How thoroughly candidates are verified: "score" or "diagnose"."""
    looks: int
    """Images of each prompt that are diagnosed once its search has ended."""
    ties: int
    """Images of each prompt that are compared in pairs in the end: 0, or at least 2."""
    near: float
    """How much less than the best objective an image may have to be compared with it."""
    comparer: Comparer | None
    """Compares; None = the verifier does."""
    overlap: bool | None
    """Whether a thread verifies a batch while the next one is generated; None = where it helps."""


class RunOptions(SearchOptions, total=False):
    """The options of `run`; every key may be absent."""

    seed: int
    """The seed that all others are derived from."""
    folder: str | Path | None
    """The run folder, to start or to continue; None = no log."""
    progress: bool
    """Whether to show the progress."""
