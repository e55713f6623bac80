"""Rerolling the flaw: which image is repainted where, and what counts as better."""

from dataclasses import replace

import numpy as np
import pytest
from histories import TASK, maps, seed, trial, with_verdict

from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.inpaint_reroll import InpaintReroll
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Draw, Heatmap, Heatmaps, Look, Mask, Repaint

SPOT = np.zeros((64, 64), np.float32)
SPOT[24:32, 24:32] = 0.2
SQUARE = np.zeros((64, 64), np.bool_)
SQUARE[24:32, 24:32] = True
MASK = Mask.of(SQUARE)
RULE = {"dilate": 0}
SEARCH = InpaintReroll(2, 2, strengths=(0.6, 1.0), fresh=0, masks=RULE)
DRAWS = [
    trial("a", 0, Draw(seed(0)), 0.3, heatmaps=maps(artifact=SPOT)),
    trial("b", 0, Draw(seed(1)), 0.8, heatmaps=maps(artifact=SPOT)),
]
FIRST = [Repaint("b", MASK, seed(i, "repaint1"), s) for i, s in enumerate((0.6, 1.0))]
BETTER = trial("c", 1, FIRST[0], 0.9, heatmaps=maps(artifact=SPOT / 2))
WORSE = trial("d", 1, FIRST[1], 0.5, heatmaps=maps(artifact=SPOT))


def second(parent: str) -> list[Repaint]:
    return [Repaint(parent, MASK, seed(i, "repaint2"), s) for i, s in enumerate((0.6, 1.0))]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], [Draw(seed(0)), Draw(seed(1))]),
        (DRAWS, FIRST),
        ([*DRAWS, BETTER, WORSE], second("c")),
        ([*DRAWS, replace(BETTER, objective=0.7), WORSE], second("a")),
        ([*DRAWS, with_verdict(BETTER, heatmaps=maps(artifact=2 * SPOT)), WORSE], second("a")),
        ([*DRAWS, replace(BETTER, objective=float("nan")), WORSE], second("a")),
        ([*DRAWS, BETTER, WORSE, trial("e", 2, second("c")[0], 0.95)], []),
    ],
    ids=["draw", "the best", "the accepted", "not better", "hotter", "not a number", "over"],
)
def test_the_flaw_of_the_best_is_repainted(history: list, expected: list) -> None:
    assert SEARCH.propose(TASK, history) == expected


def test_an_image_that_was_only_scored_is_looked_at_first() -> None:
    quick = [with_verdict(t, detail="score", heatmaps=maps()) for t in DRAWS]
    assert SEARCH.propose(TASK, quick) == [Look("b")]
    looked = trial("l", 1, Look("b"), 0.8, heatmaps=maps(artifact=SPOT))
    assert SEARCH.propose(TASK, [*quick, looked]) == FIRST


QUICK = [with_verdict(t, detail="score", heatmaps=maps()) for t in DRAWS]
LOOKED = trial("l", 1, Look("b"), 0.2, heatmaps=maps(artifact=SPOT))
REPAINT = trial("c", 2, FIRST[0], 0.9, detail="score")
AGAIN = trial("m", 3, Look("c"), 0.3, heatmaps=maps(artifact=SPOT / 2))


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        # Quick scores are compared: 0.9 against 0.8, not against the look's 0.2.
        ([REPAINT], [Look("c")]),
        ([replace(REPAINT, objective=0.7)], [Look("a")]),
        # Diagnoses are compared: 0.3 against 0.2.
        ([REPAINT, AGAIN], second("c")),
        ([REPAINT, replace(AGAIN, objective=0.1)], [Look("a")]),
        ([REPAINT, with_verdict(AGAIN, heatmaps=maps(artifact=2 * SPOT))], [Look("a")]),
        ([REPAINT, replace(AGAIN, error="no score", objective=float("nan"))], second("c")),
    ],
    ids=["better", "worse", "better by looks", "worse by looks", "hotter by looks", "failed look"],
)
def test_a_quick_score_is_never_compared_with_a_diagnosis(later: list, expected: list) -> None:
    assert SEARCH.propose(TASK, [*QUICK, LOOKED, *later]) == expected


def test_the_search_is_ended_by_a_quick_score_and_not_by_that_of_a_look() -> None:
    search = InpaintReroll(2, 2, strengths=(0.6, 1.0), fresh=0, enough=0.85, masks=RULE)
    assert search.propose(TASK, [*QUICK, replace(LOOKED, objective=0.9)]) == FIRST


def test_a_gain_too_small_is_not_accepted() -> None:
    picky = InpaintReroll(2, 2, strengths=(0.6, 1.0), fresh=0, gain=0.2, masks=RULE)
    assert picky.propose(TASK, [*DRAWS, BETTER, WORSE]) == second("a")


def test_it_draws_afresh_if_the_whole_image_is_flawed() -> None:
    wrong = maps(artifact=np.full((64, 64), 0.9, np.float32))
    history = [with_verdict(t, heatmaps=wrong) for t in DRAWS]
    assert SEARCH.propose(TASK, history) == [Draw(seed(2)), Draw(seed(3))]


def test_it_draws_afresh_if_no_score_is_usable() -> None:
    failed = [replace(t, error="no score", objective=float("nan")) for t in DRAWS]
    assert SEARCH.propose(TASK, failed) == [Draw(seed(2)), Draw(seed(3))]


def test_every_round_draws_afresh_as_well() -> None:
    both = InpaintReroll(2, 2, strengths=(0.6, 1.0), fresh=1, masks=RULE)
    assert both.propose(TASK, DRAWS) == [*FIRST, Draw(seed(2))]


def test_the_search_ends_when_the_best_is_good_enough() -> None:
    assert InpaintReroll(2, 2, enough=0.8, masks=RULE).propose(TASK, DRAWS) == []
    assert InpaintReroll(2, 2, enough=0.81, masks=RULE).propose(TASK, DRAWS) != []


def test_the_hottest_of_several_spots_is_repainted_alone_then_all_spots() -> None:
    two = SPOT.copy()
    two[48:64, 48:64] = 0.1
    history = [with_verdict(t, heatmaps=maps(artifact=two)) for t in DRAWS]
    rule = RULE | {"level": 0.99}
    search = InpaintReroll(2, 2, strengths=(1.0, 0.8, 0.6), fresh=0, masks=rule)
    first, second, third = (p.mask.array() for p in search.propose(TASK, history))
    assert (first == third).all()
    assert first.sum() == first[48:, 48:].sum() == 256
    assert second.sum() == 256 + 64


def test_boxes_are_used_without_heatmaps() -> None:
    history = [with_verdict(t, heatmaps=maps(), boxes=((24.0, 24.0, 32.0, 32.0),)) for t in DRAWS]
    assert SEARCH.propose(TASK, history) == FIRST


def test_a_verifier_without_heatmaps_causes_a_warning() -> None:
    history = [with_verdict(t, heatmaps=maps()) for t in DRAWS]
    with pytest.warns(UserWarning, match="needs a verifier that gives heatmaps or boxes"):
        assert SEARCH.propose(TASK, history) == [Draw(seed(2)), Draw(seed(3))]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"rounds": True}, "rounds must be a positive integer, got True"),
        ({"strengths": ()}, "strengths must name at least one strength"),
        ({"strengths": (0.0,)}, r"strengths must be in \(0, 1\], got 0.0"),
        ({"fresh": -1}, "fresh must be"),
        ({"enough": float("nan")}, "enough must be a finite number, got nan"),
        ({"gain": -0.1}, "gain must be finite and not negative, got -0.1"),
        ({"masks": {"level": 2}}, r"level must be in \(0, 1\), got 2"),
        ({"masks": {"lvl": 2}}, "masks must be arguments of MaskRule: .*lvl"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        InpaintReroll(**values)


def test_it_conforms() -> None:
    check_strategy(InpaintReroll(2, 2, masks={"area": (0.0, 1.0)}))


class Spotted(FakeVerifier):
    """Reports the same flaw in every image that it diagnoses."""

    def verify(self, images, prompts, *, detail="diagnose"):
        verdicts = super().verify(images, prompts, detail=detail)
        flaw = Heatmaps({"artifact": Heatmap(SPOT, (64, 64))} if detail == "diagnose" else {})
        return [replace(v, heatmaps=flaw, boxes=()) for v in verdicts]


@pytest.mark.parametrize("detail", ["score", "diagnose"])
def test_a_run_repaints_and_its_choice_is_no_worse_than_its_draws(detail: str) -> None:
    result = run(["x"], FakeGenerator(size=64), Spotted(), InpaintReroll(2), detail=detail)
    assert sum(isinstance(t.proposal, Repaint) for t in result.trials) == 4
    best_draw = max(t.objective for t in result.trials if isinstance(t.proposal, Draw))
    (choice,) = result.choices.values()
    assert choice.trial is not None
    assert choice.trial.objective >= best_draw
