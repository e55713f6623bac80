"""The published ablation as one command: its rows, its figures, and what it does after a cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tts_verifier.errors import RecipeError, RunError
from tts_verifier.evaluation import plcc, srcc
from tts_verifier.evaluation.rated import ASPECTS, MARKED_MAPS
from tts_verifier.training.common.run_folder import write_metrics
from tts_verifier.training.grpo.rewards import GROUNDING_REWARDS

BENCHMARKS = Path(__file__).parents[3] / "examples" / "benchmarks"
sys.path.append(str(BENCHMARKS))
import ablation_figures as figures  # noqa: E402
import richhf_ablation as ablation  # noqa: E402

PICTURES = 60


def options(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["richhf_ablation.py", *arguments])
    return ablation.command_line()


def lines(row: str, seed: int, *, noise: float) -> list[dict[str, Any]]:
    """What a row says of pictures: their ratings and some noise."""
    rng = np.random.default_rng(seed)
    rated = {a: rng.random(PICTURES) for a in ASPECTS}
    said = {a: rated[a] + noise * rng.standard_normal(PICTURES) for a in ASPECTS}
    return [
        {
            "seed": seed,
            "row": row,
            "picture": f"{i:03d}.png",
            **{f"rated_{a}": rated[a][i] for a in ASPECTS},
            **{a: None if i == 0 else said[a][i] for a in ASPECTS},
            **{f"{m}_cc": None if i % 2 else 1 - noise for m in MARKED_MAPS},
            **dict.fromkeys((*GROUNDING_REWARDS, "boxes"), 1.0),
        }
        for i in range(PICTURES)
    ]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for seed in range(3):
        rows = lines("stage-2", seed, noise=0.3) + lines("grpo", seed, noise=0.1)
        folder = tmp_path / f"call-{seed}"
        folder.mkdir()
        ablation.write_rows(folder / f"pictures-{seed}.parquet", rows)
        steps = [{"seed": seed, "row": "grpo", "seconds": 2.0}] * 5
        ablation.write_rows(folder / f"steps-{seed}.parquet", steps)
    return tmp_path


def test_a_weighted_correlation_is_that_of_repeated_pictures() -> None:
    rng = np.random.default_rng(0)
    p, t = rng.random(9), rng.random(9)
    p[4] = np.nan
    weights = rng.integers(0, 4, (5, 9)).astype(float)
    given = np.isfinite(p)
    wanted = [
        plcc(np.repeat(p[given], w), np.repeat(t[given], w)) for w in weights[:, given].astype(int)
    ]
    assert figures.weighted_plcc(p, t, weights) == pytest.approx(wanted)
    means = [np.repeat(p[given], w).mean() for w in weights[:, given].astype(int)]
    assert figures.weighted_mean(p, weights) == pytest.approx(means)
    assert np.isnan(figures.weighted_mean(np.full(9, np.nan), weights)).all()


def test_figures_of_several_machines_make_one_table(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures.read_figures(made)
    assert list(found) == ["stage-2", "grpo"]
    assert sorted(found["grpo"]) == [0, 1, 2]
    columns = found["grpo"][1]
    given = np.isfinite(columns["overall"])
    assert given.sum() == PICTURES - 1
    each = [plcc(columns[a][given], columns[f"rated_{a}"][given]) for a in ASPECTS]
    ones = np.ones((1, PICTURES))
    assert figures.mean_plcc(columns, ones)[0] == pytest.approx(np.mean(each))
    ranks = [srcc(columns[a][given], columns[f"rated_{a}"][given]) for a in ASPECTS]
    assert figures.mean_srcc(columns) == pytest.approx(np.mean(ranks))
    figures.print_figures(made)
    out = capsys.readouterr().out
    assert "| grpo | 3 | 10 |" in out
    assert "0.741 / 0.724 / 0.571 / 0.225" in out
    assert "| grpo − stage-2 |" in out
    figures.print_figures(made / "call-0" / "none")
    assert "No row is measured yet" in capsys.readouterr().out


def test_a_paired_interval_holds_the_difference_and_excludes_nothing_by_chance(made: Path) -> None:
    found = figures.read_figures(made)
    better, low, high = figures.difference(found["grpo"], found["stage-2"], figures.FIGURES["PLCC"])
    assert 0 < low < better < high
    assert figures.difference(found["grpo"], found["grpo"], figures.FIGURES["PLCC"]) == (0, 0, 0)
    maps = figures.difference(found["grpo"], found["stage-2"], figures.FIGURES["CC artifact"])
    assert maps == pytest.approx((0.2, 0.2, 0.2))


def test_every_row_has_a_config_that_its_entry_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = ablation.chosen_rows(options(monkeypatch, "--rows", "all", "--out", str(tmp_path)))
    assert list(rows) == list(ablation.ROWS)
    assert list(ablation.chosen_rows(options(monkeypatch))) == sorted(
        ablation.DEFAULT_ROWS, key=list(ablation.ROWS).index
    )
    added = options(monkeypatch, "--also", "fast", "grpo", "learning_rate=1e-4", "steps=9")
    rows = ablation.chosen_rows(added)
    run = ablation.Ablation(added, rows, 1)
    assert run.steps_of("fast", rows["fast"]) == 9
    assert run.steps_of("stage-1", rows["stage-1"]) == round(5 * 4000 / 128)
    assert run.keys_of("fast", rows["fast"])["learning_rate"] == "1e-4"


@pytest.mark.parametrize("argument", [["--set", "grpo"], ["--also", "fast", "grpo"]])
def test_a_misspelt_key_is_found_before_anything_is_made(
    argument: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = options(monkeypatch, "--out", str(tmp_path / "out"), *argument, "learning_rat=1")
    with pytest.raises(RecipeError, match="learning_rat"):
        ablation.chosen_rows(given)
    assert not (tmp_path / "out").exists()


def test_the_control_takes_as_long_as_grpo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = options(monkeypatch, "--out", str(tmp_path))
    run = ablation.Ablation(given, ablation.ROWS, 0)
    control = ablation.ROWS["more-stage-2"]
    with pytest.raises(RunError, match="as long as grpo"):
        run.steps_of("more-stage-2", control)
    for name, seconds in (("grpo", [9.0, 1.0, 1.0]), ("stage-2", [5.0, 5.0, 5.0, 0.5, 0.5])):
        (tmp_path / "seed-0" / name).mkdir(parents=True)
        steps = [{"step": float(i), "seconds": s} for i, s in enumerate(seconds)]
        write_metrics(tmp_path / "seed-0" / name, steps)
    assert run.steps_of("more-stage-2", control) == 22


@pytest.mark.slow
def test_a_small_ablation_is_cut_and_goes_on(tmp_path: Path) -> None:
    rows = ["stage-1", "stage-2", "grpo", "more-stage-2"]
    command = [sys.executable, str(BENCHMARKS / "richhf_ablation.py"), "--out", str(tmp_path)]
    command += ["--seeds", "0", "--rows", *rows, "--train", "8", "--test", "6", "--batch", "4"]
    command += ["--workers", "0", "--threads", "2", "--set", "cold-start-2", "steps=2"]
    command += ["--set", "grpo", "steps=2", "prompts=2", "group=2"]
    cut = subprocess.run([*command, "--minutes", "0.0001"], capture_output=True, text=True)
    assert "The time is up" in cut.stdout, cut.stderr
    whole = subprocess.run(command, capture_output=True, text=True)
    assert "| grpo − more-stage-2 |" in whole.stdout, whole.stderr
    assert not list(tmp_path.glob("seed-0/*/state"))
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.partition("held-out")[2] == whole.stdout.partition("held-out")[2]
