"""Literal histories for tests of strategies."""

import math
from dataclasses import replace

from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.identity import seed_for
from tts_verifier.types import (
    Budget,
    Continue,
    Draw,
    Heatmap,
    Heatmaps,
    InMemory,
    Look,
    Prompt,
    Proposal,
    Repaint,
    Task,
    Trial,
    Verdict,
)

PROMPT = Prompt("0", "a red circle")
TASK = Task(PROMPT, 7, frozenset({Draw, Continue, Repaint, Look}), Budget(), Objective())
IMAGE = Image.new("RGB", (64, 64))


def seed(index: int, purpose: str = "draw") -> int:
    return seed_for(7, "a red circle", index, purpose)


def trial(
    name: str, round: int, proposal: Proposal, objective: float = math.nan, **more: object
) -> Trial:
    """Returns a trial; `heatmaps`, `boxes`, `scores` and `detail` go into its verdict."""
    until = getattr(proposal, "until", 1.0)
    fields = {key: more.pop(key) for key in ("heatmaps", "boxes", "detail") if key in more}
    verdict = Verdict(more.pop("scores", {}), **fields)  # type: ignore[arg-type]
    given = {"image": InMemory(IMAGE), "size": IMAGE.size, "verdict": verdict, **more}
    return Trial(name, PROMPT, round, proposal, until, objective=objective, **given)  # type: ignore[arg-type]


def maps(**grids: object) -> Heatmaps:
    """Returns heatmaps of a 64-pixel image by name, from 64x64 grids."""
    return Heatmaps({name: Heatmap(grid, (64, 64)) for name, grid in grids.items()})  # type: ignore[arg-type]


def with_verdict(trial: Trial, **changes: object) -> Trial:
    """Returns the trial with a changed verdict."""
    return replace(trial, verdict=replace(trial.verdict, **changes))  # type: ignore[type-var]
