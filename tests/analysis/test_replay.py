"""Replay: exact figures agree with the enumeration of every subset and every order."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from searches import InpaintReroll

from tts_verifier.analysis.expected_best import by_prompt, expected_best, expected_stop, misses
from tts_verifier.analysis.replay import replay_log, replay_trials
from tts_verifier.analysis.replay_output import replay_text, write_plot
from tts_verifier.cli.replay import replay_command
from tts_verifier.cli.run import run_command
from tts_verifier.errors import InputError, RunError
from tts_verifier.log import read_trials
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.successive_halving import SuccessiveHalving
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Continue, Cost, Draw, Near, Prompt, Proposal, Trial, Verdict

GOALS = st.sampled_from([0.1, 0.25, 0.5, 0.75, math.nan])
POOLS = st.lists(st.tuples(GOALS, st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=6)

OWN = Draw(0)


def trial(
    objective: float,
    passed: float | None = None,
    *,
    prompt: str = "a",
    proposal: Proposal = OWN,
) -> Trial:
    judge = {} if passed is None else {"passed": passed}
    cost = Cost(network_evaluations=20, generate_seconds=0.5, verify_seconds=0.25)
    return Trial(
        "x",
        Prompt(prompt, prompt),
        0,
        proposal,
        1.0,
        Verdict({"s": objective}),
        objective,
        cost,
        judge=judge,
    )


def mean_of_best(subset: Sequence[tuple[float, float]]) -> float:
    """Returns the mean value of the best draws of a subset; 0 without a usable one."""
    goals = [g for g, _ in subset if not math.isnan(g)]
    return fmean(v for g, v in subset if g == max(goals)) if goals else 0.0


@given(POOLS)
def test_best_of_n_is_the_mean_over_all_subsets(pool: list[tuple[float, float]]) -> None:
    goals, values = np.array(pool).T
    wanted = [fmean(map(mean_of_best, combinations(pool, n + 1))) for n in range(len(pool))]
    assert expected_best(goals, values).tolist() == pytest.approx(wanted)


@given(POOLS, st.sampled_from([0.0, 0.25, 0.6, 2.0]), st.integers(1, 6))
def test_stopping_is_the_mean_over_all_orders(
    pool: list[tuple[float, float]], threshold: float, limit: int
) -> None:
    limit = min(limit, len(pool))
    stops, values = [], []
    for order in permutations(pool):
        hits = [i for i, (goal, _) in enumerate(order[:limit], 1) if goal >= threshold]
        stops.append(hits[0] if hits else limit)
        values.append(order[hits[0] - 1][1] if hits else mean_of_best(order[:limit]))
    goals, outcomes = np.array(pool).T
    wanted = [fmean(stops), fmean(values)]
    assert expected_stop(goals, outcomes, threshold, limit).tolist() == pytest.approx(wanted)


def test_misses_are_chances_of_draws_without_replacement() -> None:
    assert misses(4, 1).tolist() == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4, 0])
    assert misses(3, 3).tolist() == [1, 0, 0, 0]
    assert misses(3, 0).tolist() == [1, 1, 1, 1]


def test_large_pools_stay_exact() -> None:
    goals = np.arange(1000.0)
    # The expected maximum of n of 0 … N - 1 is n (N + 1) / (n + 1) - 1.
    n = np.arange(1, 1001)
    assert expected_best(goals, goals) == pytest.approx(n * 1001 / (n + 1) - 1)


def test_means_are_over_prompts_up_to_the_smallest_pool() -> None:
    pool = [trial(0.2, 0.0), trial(0.4, 1.0), trial(0.4, 0.0)]
    pool += [trial(0.8, 1.0, prompt="b"), trial(0.6, 0.0, prompt="b")]
    done = replay_trials(pool)
    assert (done.prompts, done.candidates, done.tied, done.tied_best) == (2, 2, 2, 1)
    assert (done.evaluations, done.seconds, done.failed) == (20, 0.75, 0)
    objective, judge = done.curves
    assert (objective.name, judge.name) == ("objective", "judge_passed")
    assert [e.mean for e in objective.values] == pytest.approx([(1 / 3 + 0.7) / 2, 0.6])
    assert [e.mean for e in judge.values] == pytest.approx([(1 / 3 + 0.5) / 2, 0.75])
    assert judge.values[1].low == pytest.approx(0.5)
    assert judge.values[1].high == pytest.approx(1.0)


def test_failed_draws_are_chosen_last_and_never_averaged() -> None:
    done = replay_trials([trial(math.nan, math.nan), trial(0.5, 1.0)])
    objective, judge = done.curves
    assert done.failed == 1
    assert [e.mean for e in objective.values] == [0.5, 0.5]
    assert [e.mean for e in judge.values] == pytest.approx([0.5, 1.0])
    lost = replay_trials([trial(math.nan, math.nan)])
    assert math.isnan(lost.curves[0].values[0].mean)
    assert lost.curves[1].values[0].mean == 0.0
    assert lost.stopping == ()


def test_a_prompt_that_the_judge_could_not_read_is_left_out_and_counted() -> None:
    done = replay_trials([trial(0.5, math.nan), trial(0.5, 1.0, prompt="b")])
    assert [(c.name, c.prompts) for c in done.curves] == [("objective", 2), ("judge_passed", 1)]
    assert "objective from" not in replay_text(done)
    assert "judge_passed from 1" in replay_text(done)


def test_draws_that_depend_on_others_are_left_out() -> None:
    near, part = Draw(1, noise=Near("x", 0.1)), Draw(2, until=0.5)
    done = replay_trials([trial(0.5), trial(0.9, proposal=near), trial(0.9, proposal=part)])
    assert (done.candidates, done.left_out) == (1, 2)
    assert "left out: 2 trials" in replay_text(done)
    with pytest.raises(InputError, match=r"needs whole draws.*none among its 1 trials"):
        replay_trials([trial(0.9, proposal=near)])


def test_the_plot_is_an_svg_with_every_measure(tmp_path: Path) -> None:
    done = replay_trials([trial(0.2, 0.0), trial(0.4, 1.0)])
    write_plot(done, tmp_path / "plot.svg")
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    names = [e.get("aria-label") for e in root if e.get("aria-label")]
    assert names == ["Expected objective", "Expected judge_passed"]
    with pytest.raises(RunError, match=r"cannot be written.*--plot"):
        write_plot(done, tmp_path / "no" / "plot.svg")


def test_the_command_prints_and_plots_without_torch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = CliRunner().invoke(run_command, ["fake", "--output", str(run)])
    assert done.exit_code == 0
    code = "import sys; from tts_verifier.cli.replay import replay_command\ntry: replay_command()\n"
    code += "finally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(run)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "3 prompts, the best of 1 to 4 draws each" in shown
    assert f"plot: {run / 'replay.svg'}" in shown
    assert shown.endswith("False\n")
    assert (run / "replay.svg").read_text().startswith("<svg")


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(replay_command, [str(tmp_path)])
    assert done.exit_code == 2
    assert "must be a run's header, but it does not exist. Give the folder" in done.stderr


# -- many prompts at once ----------------------------------------------------------------------


def plain_best(objective: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The same expectation for one prompt, group by group."""
    total, better = len(objective), 0
    expected = np.zeros(total)
    for goal in np.unique(objective[~np.isnan(objective)])[::-1]:
        group = objective == goal
        size = int(group.sum())
        chance = misses(total, better) - misses(total, better + size)
        expected += chance[1:] * values[group].mean()
        better += size
    return expected


def plain_stop(
    objective: np.ndarray, values: np.ndarray, threshold: float, limit: int
) -> np.ndarray:
    hits = objective >= threshold
    none = misses(len(objective), int(hits.sum()))
    value = (1 - none[limit]) * values[hits].mean() if hits.any() else 0.0
    if int((~hits).sum()) >= limit:
        value += none[limit] * plain_best(objective[~hits], values[~hits])[limit - 1]
    return np.array([none[:limit].sum(), value])


@pytest.mark.parametrize("digits", [1, 2, 9])
@pytest.mark.parametrize("draws", [1, 4, 16, 40])
def test_prompts_together_give_every_bit_of_one_alone(digits: int, draws: int) -> None:
    dice = np.random.default_rng(draws)
    goals = dice.random((60, draws)).round(digits)
    goals[dice.random(goals.shape) < 0.1] = np.nan
    goals[0] = np.nan
    values = dice.random(goals.shape)
    values[dice.random(goals.shape) < 0.01] = np.nan
    together = expected_best(goals, values)
    alone = [plain_best(g, v) for g, v in zip(goals, values, strict=True)]
    np.testing.assert_array_equal(together, alone)
    for threshold in (0.0, 0.5, 0.9, 2.0):
        for limit in {1, draws}:
            stops = expected_stop(goals, values, threshold, limit)
            wanted = [
                plain_stop(g, v, threshold, limit) for g, v in zip(goals, values, strict=True)
            ]
            np.testing.assert_array_equal(stops, wanted)


def test_prompts_of_different_lengths_keep_their_places() -> None:
    rows = [np.arange(float(n)) for n in (3, 1, 3, 2)]
    sums = by_prompt(lambda goals, values: goals.sum(axis=1) + values[:, 0], rows, rows)
    assert sums.tolist() == [3, 0, 3, 1]
    assert by_prompt(lambda goals, values: goals, [], []).shape == (0,)


def test_a_folder_is_replayed_from_its_numbers_alone(tmp_path: Path) -> None:
    prompts, judge = ["a ring", "a cube", "a cone"], FakeVerifier()
    for strategy in (BestOfN(6), SuccessiveHalving(6, keep=1.0), InpaintReroll(3, 2)):
        folder = tmp_path / type(strategy).__name__
        run(prompts, FakeGenerator(), FakeVerifier(), strategy, judge=judge, folder=folder)
        assert repr(replay_log(folder)) == repr(replay_trials(read_trials(folder)))
    for mask in (folder / "masks").iterdir():
        mask.unlink()
    assert replay_log(folder).left_out > 0, "what a replay leaves out needs no files"


def test_a_continued_trial_without_its_parent_is_left_out() -> None:
    lost = trial(0.9, proposal=Continue("gone", 1.0, 0))
    own, other = Continue("y", 1.0, 0), Continue("z", 1.0, 0)
    circle = [
        replace(trial(0.9, proposal=own), id="z"),
        replace(trial(0.9, proposal=other), id="y"),
        replace(trial(0.9, proposal=own), id="end"),
    ]
    done = replay_trials([trial(0.5), lost, *circle])
    assert (done.candidates, done.left_out) == (1, 4)


def test_a_plot_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    (tmp_path / "plot.svg").symlink_to(tmp_path / "kept")
    write_plot(replay_trials([trial(0.5)]), tmp_path / "plot.svg")
    assert (tmp_path / "kept").read_text() == "mine"
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
