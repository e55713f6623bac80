"""`tts-evaluate` and `tts-train`: from a config to the table."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tts_verifier.training.richhf.miniature import make_miniature_richhf


def invoke(command: str, *arguments: object) -> Result:
    module = import_module(f"tts_verifier.cli.{command}")
    return CliRunner().invoke(getattr(module, f"{command}_command"), [str(a) for a in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("richhf") / "data"
    make_miniature_richhf(
        output=str(folder), sizes={"test": 12, "dev": 4}, sample_share=0.0, processes=1
    )
    return folder


def test_data_is_made_by_tts_train(tmp_path: Path) -> None:
    settings = ["sizes={test: 2}", "sample_share=0", "processes=1", f"output={tmp_path / 'x'}"]
    done = invoke("train", "miniature-richhf", "miniature-richhf", *settings)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x" / "test-00000-of-00001.tfrecord").is_file()
    failed = invoke("train", "miniature-richhf", "miniature-richhf", "sizs=1")
    assert (failed.exit_code, "unknown key 'sizs'" in failed.stderr) == (2, True)


def test_the_oracle_is_measured_on_alignment_and_its_map(data: Path, tmp_path: Path) -> None:
    arguments = ("--verifier", "shapes-oracle", "--score", "semantic_alignment=score")
    outputs = [tmp_path / "x.json", tmp_path / "x.parquet"]
    done = invoke(
        "evaluate", data, *arguments, *(a for path in outputs for a in ("--output", path))
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("12 pictures; maps compared at 384 x 384 pixels")
    assert "12 of 12 pictures" in done.stderr
    found = json.loads(outputs[0].read_text())["figures"]
    assert found["semantic_alignment"]["plcc"] > 0.6
    assert (found["overall"]["missing"], found["artifact"]["missing"]) == (12, 12)
    assert found["misalignment"]["missing"] == 0
    assert outputs[1].is_file()


def test_a_verifier_without_known_names_says_how_to_name_them(data: Path) -> None:
    done = invoke("evaluate", data, "--verifier", "shapes-oracle", "--limit", 4)
    assert done.exit_code == 0
    assert "name the verifier's own with --score" in done.stderr


def test_any_verifier_of_recipes_and_a_split_may_be_named(data: Path) -> None:
    done = invoke("evaluate", data, "--verifier", "fake", "--split", "dev", "--detail", "score")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("4 pictures")
    assert "missing maps: 4 of 4" in done.stdout


def test_a_missing_picture_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make_miniature_richhf(output=str(folder), sizes={"test": 3}, sample_share=0.0, processes=1)
    lost = next((folder / "images").rglob("*.png"))
    lost.unlink()
    done = invoke("evaluate", folder, "--verifier", "fake")
    assert done.exit_code == 0
    assert done.stdout.startswith("2 pictures")
    assert "Warning: 1 of 3 pictures in " in done.stderr
    assert lost.name in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "nothing"), "It has the splits: dev, test."),
        (("--score", "overall"), "--score must look like ASPECT=NAME"),
        (("--score", "beauty=overall"), "An aspect is one of plausibility"),
        (("--output", "figures.csv"), "Figures are written to a .json or .parquet file"),
        (("--output", "s3://bucket/figures.json"), "file on a file system, got s3:/bucket"),
    ],
)
def test_a_mistake_is_one_line(data: Path, arguments: tuple[str, ...], message: str) -> None:
    done = invoke("evaluate", data, "--verifier", "fake", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_changed_byte_is_one_line_that_says_where(data: Path, tmp_path: Path) -> None:
    content = bytearray((data / "dev-00000-of-00001.tfrecord").read_bytes())
    content[200] ^= 1
    (tmp_path / "x.tfrecord").write_bytes(content)
    (tmp_path / "prompts").symlink_to(data / "prompts")
    done = invoke("evaluate", tmp_path / "x.tfrecord", "--verifier", "fake")
    assert (done.exit_code, "x.tfrecord: record 0 (byte 0)" in done.stderr) == (2, True)
