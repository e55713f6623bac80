"""Literal histories for tables of strategies: what was drawn, and what is proposed next."""

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
PICTURE = Image.new("RGB", (64, 64))


def seed(index: int, purpose: str = "draw") -> int:
    return seed_for(7, "a red circle", index, purpose)


def trial(
    name: str, round: int, proposal: Proposal, objective: float = math.nan, **more: object
) -> Trial:
    """A finished trial; `heatmaps`, `boxes`, `scores` and `detail` are its verdict's."""
    until = getattr(proposal, "until", 1.0)
    said = {key: more.pop(key) for key in ("heatmaps", "boxes", "detail") if key in more}
    verdict = Verdict(more.pop("scores", {}), **said)  # type: ignore[arg-type]
    given = {"image": InMemory(PICTURE), "size": PICTURE.size, "verdict": verdict, **more}
    return Trial(name, PROMPT, round, proposal, until, objective=objective, **given)  # type: ignore[arg-type]


def maps(**grids: object) -> Heatmaps:
    """Heatmaps of a 64-pixel image by name, from 64x64 grids."""
    return Heatmaps({name: Heatmap(grid, (64, 64)) for name, grid in grids.items()})  # type: ignore[arg-type]


def seen_as(trial: Trial, **changes: object) -> Trial:
    """The trial with another verdict."""
    return replace(trial, verdict=replace(trial.verdict, **changes))  # type: ignore[type-var]
