"""`tts-score --parallel`: the engines of runs judge pictures, and the folder is the same."""

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from scoring_worker import load_dying

from tts_verifier.cli.score import score_command
from tts_verifier.parallel import hand_out, open_engine
from tts_verifier.recipe import parallel_options
from tts_verifier.recipe.parallel_options import ParallelOptions
from tts_verifier.scoring import open_pairs, score_with_workers
from tts_verifier.scoring.distributed import score_chunk


def score(*arguments: object, verifier: object = "fake") -> Result:
    return CliRunner().invoke(score_command, [*map(str, arguments), "--verifier", str(verifier)])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for i in range(100):
        Image.new("RGB", (2, 2), (2 * i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


def frame(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder).sort_values("image", ignore_index=True)


def test_an_engine_gives_the_same_folder(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parallel_options.ENGINES, "loky", "inline_engine:InlineEngine")
    given = (pictures, "--prompt", "x", "--output")
    assert score(*given, tmp_path / "one").exit_code == 0
    done = score(*given, tmp_path / "many", "--parallel", "2", "parallel.shard=7", "--top", 1)
    assert done.exit_code == 0, done.output
    assert done.stderr == f"100 images, 0 failed: {tmp_path / 'many'}\n"
    assert done.stdout.splitlines()[1].split()[0] == str(pictures / "99.png")
    pd.testing.assert_frame_equal(frame(tmp_path / "one"), frame(tmp_path / "many"))


def write_recipe(folder: Path, weight: int) -> Path:
    text = f"verifier: {{name: fake}}\nobjective: {{weights: {{semantic_alignment: {weight}}}}}\n"
    (folder / "judge.yaml").write_text(text)
    return folder / "judge.yaml"


def test_another_objective_of_a_recipe_makes_other_rows(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parallel_options.ENGINES, "loky", "inline_engine:InlineEngine")
    given = (pictures, "--prompt", "x", "--top", 1, "--output", tmp_path / "out")
    best = []
    for weight in (1, -1):
        done = score(*given, "--parallel", verifier=write_recipe(tmp_path, weight))
        assert done.exit_code == 0, done.output
        best.append(Path(done.stdout.splitlines()[1].split()[0]).name)
    assert best == ["99.png", "0.png"]
    # Whoever judged them, the rows are the same ones.
    assert score(*given, verifier=tmp_path / "judge.yaml").exit_code == 0
    assert len(frame(tmp_path / "out")) == 200


def test_a_misspelt_score_is_found_before_pictures_are_judged(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parallel_options.ENGINES, "loky", "inline_engine:InlineEngine")
    for option in (("--sort", "overal"), ("--min", "overal=0.5")):
        done = score(pictures, "--prompt", "x", "--output", tmp_path / "out", "--parallel", *option)
        assert (done.exit_code, "got 'overal'" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--parallel", "spark"), "Unknown engine 'spark'"),
        (("--parallel", "2", "parallel.gpu=1"), "no option parallel.gpu. Did you mean 'gpus'"),
        (("parallel.workers=x",), "workers must be a whole number, 1 or more, got 'x'"),
        (("--parallel", "parallel.gpu=1"), "no option parallel.gpu. Did you mean 'gpus'"),
        (("--parallel", "0"), "workers must be a whole number, 1 or more, got 0"),
        (("--parallel", "1.5"), "workers must be a whole number, 1 or more, got '1.5'"),
        (("--parallel", "ray", "parallel.address=1"), "address must be HOST:PORT"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(
    pictures: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = score(pictures, "--prompt", "x", "--output", tmp_path / "out", *arguments)
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    done = score(pictures, "--prompt", "x", "--parallel", "2")
    assert "Several processes write a folder of parts. Give a folder as --output" in done.stderr
    done = score("--parallel", "2", "parallel.gpus=0", "--output", tmp_path / "out")
    assert "There is no picture. Name" in done.stderr


@pytest.mark.slow
def test_a_worker_that_is_killed_or_hangs_costs_its_chunk(pictures: Path, tmp_path: Path) -> None:
    source = open_pairs([str(pictures)], prompt="x")
    with open_engine(ParallelOptions(workers=2), score_chunk) as engine:
        parts = score_with_workers(
            tmp_path / "out",
            partial(hand_out, engine),
            load_dying,
            str(tmp_path),
            source,
            at_once=10,
            timeout=2,
        )
    assert len(list(parts.rows())) == 100
    assert (tmp_path / "hung").exists()
    judged = [int(line) for line in (tmp_path / "judged").read_text().splitlines()]
    assert sum(judged) == 120
