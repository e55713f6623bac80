"""Literal histories for tables of strategies: what was drawn, and what is proposed next."""

import math

from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.identity import seed_for
from tts_verifier.types import (
    Budget,
    Continue,
    Draw,
    Heatmap,
    Look,
    Prompt,
    Proposal,
    Repaint,
    Stored,
    Task,
    Trial,
)

PROMPT = Prompt("0", "a red circle")
TASK = Task(PROMPT, 7, frozenset({Draw, Continue, Repaint, Look}), Budget(), Objective())
PICTURE = Image.new("RGB", (64, 64))


def seed(index: int, purpose: str = "draw") -> int:
    return seed_for(7, "a red circle", index, purpose)


def trial(
    name: str, round: int, proposal: Proposal, objective: float = math.nan, **more: object
) -> Trial:
    until = getattr(proposal, "until", 1.0)
    picture = Stored(lambda: PICTURE)
    given = {"image": picture, **more}
    return Trial(name, PROMPT, round, proposal, until, {}, objective, **given)  # type: ignore[arg-type]


def maps(**grids: object) -> dict[str, Stored[Heatmap]]:
    """Heatmaps of a 64-pixel picture by name, from 64x64 grids."""
    return {name: Stored(lambda g=g: Heatmap(g, (64, 64))) for name, g in grids.items()}  # type: ignore[misc]
