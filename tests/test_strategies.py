"""Strategies as tables: a history, and what is proposed next."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from searches import InpaintReroll, SeedBeam, ZeroOrder

from tts_verifier.errors import InputError
from tts_verifier.objective import Objective
from tts_verifier.seams import Strategy
from tts_verifier.seeds import seed_for
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.types import (
    Budget,
    Continue,
    Draw,
    Heatmap,
    Look,
    Mask,
    Near,
    Prompt,
    Proposal,
    Repaint,
    Stored,
    Task,
    Trial,
)

PROMPT = Prompt("0", "a red circle")
TASK = Task(PROMPT, 7, frozenset({Draw, Continue, Repaint, Look}), Budget(), Objective())


def seed(index: int, purpose: str = "draw") -> int:
    return seed_for(7, "a red circle", index, purpose)


def trial(name: str, round: int, proposal: Proposal, objective: float = math.nan) -> Trial:
    until = getattr(proposal, "until", 1.0)
    return Trial(name, PROMPT, round, proposal, until, {}, objective)


def test_best_of_n_draws_all_at_once_and_stops() -> None:
    draws = [Draw(seed(i)) for i in range(3)]
    assert BestOfN(3).propose(TASK, []) == draws
    history = [trial(str(i), 0, d, 0.5) for i, d in enumerate(draws)]
    assert BestOfN(3).propose(TASK, history) == []


def test_best_of_n_raised_draws_only_what_is_new() -> None:
    history = [trial(str(i), 0, Draw(seed(i)), 0.5) for i in range(3)]
    assert BestOfN(5).propose(TASK, history) == [Draw(seed(3)), Draw(seed(4))]


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "8"])
def test_best_of_n_needs_a_positive_number(n: object) -> None:
    with pytest.raises(InputError, match=f"n must be a positive integer, got {n!r}"):
        BestOfN(n)  # type: ignore[arg-type]


P0, P1 = Draw(seed(0), 0.4), Draw(seed(1), 0.4)
C0 = Continue("b", 0.7, seed(0, "branch1"), renoise=0.1)
C1 = Continue("b", 0.7, seed(1, "branch1"), renoise=0.1)
PREVIEWS = [trial("a", 0, P0, 0.2), trial("b", 0, P1, 0.6)]
CARRIED = [*PREVIEWS, trial("c", 1, C0, 0.3), trial("d", 1, C1, math.nan)]
FINALS = [Continue("c", 1.0, seed(i, "branch2"), renoise=0.1) for i in (0, 1)]
DONE = [*CARRIED, *(trial(f"e{i}", 2, p, 0.9) for i, p in enumerate(FINALS))]


@pytest.mark.parametrize(
    ("history", "expected"),
    [([], [P0, P1]), (PREVIEWS, [C0, C1]), (CARRIED, FINALS), (DONE, [])],
    ids=["previews", "carried on", "to the end", "over"],
)
def test_a_seed_beam_carries_the_better_on(
    history: Sequence[Trial], expected: list[Proposal]
) -> None:
    assert SeedBeam(width=2).propose(TASK, history) == expected


PIVOT = trial("p", 0, Draw(seed(0)), 0.5)
NEAR_P = [Draw(seed(i), noise=Near("p", 0.3)) for i in (1, 2)]
ROUND_1 = [PIVOT, trial("q", 1, NEAR_P[0], 0.4), trial("r", 1, NEAR_P[1], 0.7)]
NEAR_R = [Draw(seed(i), noise=Near("r", 0.3)) for i in (3, 4)]
ROUND_2 = [*ROUND_1, *(trial(f"s{i}", 2, p, 0.6) for i, p in enumerate(NEAR_R))]


@pytest.mark.parametrize(
    ("history", "expected"),
    [([], [Draw(seed(0))]), ([PIVOT], NEAR_P), (ROUND_1, NEAR_R), (ROUND_2, [])],
    ids=["pivot", "round 1", "round 2 about the new best", "over"],
)
def test_a_zero_order_search_moves_its_pivot(
    history: Sequence[Trial], expected: list[Proposal]
) -> None:
    assert ZeroOrder().propose(TASK, history) == expected


GRID = np.array([[0, 1], [0, 1]], np.float32)
DRAWN = [trial("a", 0, Draw(seed(0)), 0.3), trial("b", 0, Draw(seed(1)), 0.8)]
SEEN = Trial(
    "l", PROMPT, 1, Look("b"), 1.0, {}, 0.8,
    heatmaps={"misalignment": Stored(lambda: Heatmap(GRID, (2, 2)))},
)  # fmt: skip
RIGHT_HALF = Mask.of(np.array([[False, True], [False, True]]))
REPAINTS = [Repaint("l", RIGHT_HALF, seed(i, "repaint"), strength=0.8) for i in (0, 1)]
REPAINTED = [*DRAWN, SEEN, *(trial(f"r{i}", 2, p, 0.9) for i, p in enumerate(REPAINTS))]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], [Draw(seed(0)), Draw(seed(1))]),
        (DRAWN, [Look("b")]),
        ([*DRAWN, SEEN], REPAINTS),
        (REPAINTED, []),
    ],
    ids=["draw", "look at the best", "repaint its flaw", "over"],
)
def test_an_inpaint_reroll_repaints_the_flaw(
    history: Sequence[Trial], expected: list[Proposal]
) -> None:
    assert InpaintReroll(n=2).propose(TASK, history) == expected


@pytest.mark.parametrize("strategy", [BestOfN(), SeedBeam(), ZeroOrder(), InpaintReroll()])
def test_every_strategy_has_the_seam(strategy: object) -> None:
    assert isinstance(strategy, Strategy)
