"""Folders and globs of images, scored into files that a stopped command continues."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tts_verifier.cli.score import CountedPairs, score_command
from tts_verifier.errors import InputError, RunError
from tts_verifier.scoring import Pair, find_images, score_into
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures, from black to red, two of them in a folder below: more than a batch."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i in range(40):
        place = tmp_path / "in" / ("deep" if i > 37 else ".") / f"{i:02d}.png"
        Image.new("RGB", (4, 4), (i * 6, 0, 0)).save(place)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path


class StopsAfter(FakeVerifier):
    """Verifies that many batches and then stops the process, as Ctrl-C does."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def verify(self, *arguments: Any, **options: Any) -> list[Verdict]:
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt
        return super().verify(*arguments, **options)


def images_verified(verifier: FakeVerifier) -> int:
    return sum(int(call[1:]) for call in verifier.trace)


def test_a_line_now_and_then_says_how_many_were_read(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    pairs = CountedPairs([Pair(f"{i}.png", "x") for i in range(100)], lambda: now)
    for _ in pairs:
        now += 0.5
    now += 60
    pairs.show()
    assert capsys.readouterr().err.splitlines() == [
        "60 pictures read, 2.0 a second",
        "100 pictures read, 0.5 a second",
    ]


def test_folders_globs_and_files_are_found_once(folder: Path) -> None:
    everything = find_images([str(folder / "in")])
    assert [Path(p).name for p in everything] == [f"{i:02d}.png" for i in range(40)]
    some = find_images([str(folder / "in" / "1*.png"), everything[12], everything[0]])
    assert [Path(p).stem for p in some] == [*(str(i) for i in range(10, 20)), "00"]
    (folder / "in" / "a[1].png").touch()
    assert find_images([str(folder / "in" / "a[1].png")]) == [str(folder / "in" / "a[1].png")]


@pytest.mark.parametrize("pattern", ["nothing*.png", "deeper/**", "."])
def test_a_pattern_without_images_is_named(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"has no image\. Name files, folders or globs"):
        find_images([str(tmp_path / pattern)])


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.parquet"])
def test_a_stopped_command_continues(folder: Path, name: str) -> None:
    output, paths = folder / name, find_images([str(folder / "in")])
    with pytest.raises(KeyboardInterrupt):
        score_into(output, StopsAfter(1), paths, prompt="x")
    verifier = FakeVerifier()
    rows = score_into(output, verifier, paths, prompt="x")
    assert images_verified(verifier) == 8
    assert [Path(row["image"]).stem for row in rows[:2]] == ["39", "38"]
    read = pd.read_json(output, lines=True) if name.endswith("l") else pd.read_parquet(output)
    assert sorted(read.image) == sorted(paths)
    assert read.objective.max() == pytest.approx(rows[0]["objective"])
    assert {p.name for p in folder.iterdir()} == {"in", name}


def test_only_what_changed_is_scored_again(folder: Path) -> None:
    output, paths = folder / "scores.jsonl", find_images([str(folder / "in")])
    score_into(output, FakeVerifier(), paths, prompt="x")
    Image.new("RGB", (4, 4), "white").save(paths[0])
    shutil.copy(paths[5], folder / "in" / "copy.png")
    verifier = FakeVerifier()
    rows = score_into(output, verifier, [*paths, str(folder / "in" / "copy.png")], prompt="x")
    assert images_verified(verifier) == 1
    assert rows[0]["image"] == paths[0]
    assert str(folder / "in" / "copy.png") in [row["image"] for row in rows]
    verifier = FakeVerifier()
    score_into(output, verifier, paths[:3], prompt="y")
    score_into(output, verifier, paths[:3], prompt="x", detail="score")
    assert images_verified(verifier) == 6


def test_a_line_that_a_kill_cut_off_is_scored_again(folder: Path) -> None:
    output, paths = folder / "scores.jsonl", find_images([str(folder / "in")])
    score_into(output, FakeVerifier(), paths, prompt="x")
    whole = output.read_bytes()
    output.write_bytes(whole[:-30])
    verifier = FakeVerifier()
    score_into(output, verifier, paths, prompt="x")
    assert images_verified(verifier) == 1
    assert output.read_bytes() == whole


def test_what_is_no_picture_is_a_row_with_its_reason(folder: Path) -> None:
    bad = [str(folder / "in" / "notes.txt"), str(folder / "gone.png")]
    paths = [*find_images([str(folder / "in")])[:3], *bad]
    for name in ("scores.jsonl", "scores.parquet"):
        rows = score_into(folder / name, FakeVerifier(), paths, prompt="x")
        assert [row["image"] for row in rows[3:]] == bad
        assert all(row["error"] and row["objective"] is None for row in rows[3:])
    table = pd.read_parquet(folder / "scores.parquet")
    assert table.error.notna().sum() == 2
    assert table.overall.isna().sum() == 2


def test_what_cannot_be_written_or_continued_is_named(folder: Path) -> None:
    paths = find_images([str(folder / "in" / "0*")])
    with pytest.raises(InputError, match=r"\.parquet file, or to a folder, got x\.csv"):
        score_into(Path("x.csv"), FakeVerifier(), paths, prompt="x")
    with pytest.raises(RunError, match=r"scores\.jsonl cannot be written: No such file"):
        score_into(folder / "no" / "scores.jsonl", FakeVerifier(), paths, prompt="x")
    (folder / "mine.jsonl").write_text('{"my": "own"}\n')
    with pytest.raises(RunError, match=r"mine\.jsonl must hold scores .*Give another --output"):
        score_into(folder / "mine.jsonl", FakeVerifier(), paths, prompt="x")
    assert (folder / "mine.jsonl").read_text() == '{"my": "own"}\n'


def score(*arguments: object) -> Result:
    command = [*map(str, arguments), "--prompt", "x", "--verifier", "fake"]
    return CliRunner().invoke(score_command, command)


def test_the_command_prints_the_best_and_writes_all(folder: Path) -> None:
    (folder / "in" / "bad.png").write_text("no")
    output = folder / "scores.jsonl"
    done = score(folder / "in", "--output", output, "--top", 2)
    assert done.exit_code == 0, done.output
    assert [line.split()[0][-6:] for line in done.stdout.splitlines()] == [
        "image",
        "39.png",
        "38.png",
    ]
    assert done.stderr == f"41 images, 1 failed: {output}\n"
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 41
    table = score(folder / "in", "--output", output).stdout.splitlines()
    assert table[-1].split()[:3] == [str(folder / "in" / "bad.png"), "nan", "nan"]
    assert "is not" in table[-1]


@pytest.mark.parametrize("form", ["table", "jsonl"])
def test_the_command_prints_no_control_characters(folder: Path, form: str) -> None:
    path = folder / "a\x1b[2J\x9b31m.png"
    Image.new("RGB", (4, 4)).save(path)
    done = score(path, "--format", form)
    assert done.exit_code == 0, done.output
    assert not any(letter in done.output for letter in "\x1b\x9b")
    if form == "jsonl":
        assert json.loads(done.stdout)["image"] == str(path)
    else:
        assert r"a\x1b[2J\u009b31m.png" in done.stdout
