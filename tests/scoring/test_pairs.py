"""Tables of images and prompts, odd files among good ones, and two calls at once."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tts_verifier.cli.score import score_command
from tts_verifier.errors import InputError, RunError
from tts_verifier.log.lock import FolderLock
from tts_verifier.scoring import Pair, read_pairs, score_files, score_into, score_pairs_into
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict

PAIRS = [("red.png", "a red circle"), ("sub/blue.png", "a blue square")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name, _ in PAIRS:
        Image.new("RGB", (4, 4), Path(name).stem).save(tmp_path / name)
    return tmp_path


def score(*arguments: object) -> Result:
    return CliRunner().invoke(score_command, [*map(str, arguments), "--verifier", "fake"])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


# -- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.NDJSON", "t.json", "t.parquet"])
@pytest.mark.parametrize(
    "columns", [("image", "prompt"), ("file_name", "text"), ("Path", "Caption")]
)
def test_a_table_is_scored_pair_by_pair(
    folder: Path, name: str, columns: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame(PAIRS, columns=columns).assign(n=1)
    suffix = name.lower().rpartition(".")[2]
    if suffix == "parquet":
        table.to_parquet(folder / name)
    elif suffix in ("csv", "tsv"):
        table.to_csv(folder / name, sep="," if suffix == "csv" else "\t", index=False)
    else:
        table.to_json(folder / name, orient="records", lines=suffix != "json")
    monkeypatch.chdir("/")
    for output in (folder / "scores.jsonl", folder / "scores.parquet"):
        done = score(folder / name, "--output", output)
        assert done.exit_code == 0, done.output
        assert done.stderr == f"2 images, 0 failed: {output}\n"
    expected = {(str(folder / image), prompt) for image, prompt in PAIRS}
    assert {(row["image"], row["prompt"]) for row in rows_of(folder / "scores.jsonl")} == expected
    read = pd.read_parquet(folder / "scores.parquet")
    assert set(zip(read.image, read.prompt, strict=True)) == expected
    lines = [
        json.loads(line) for line in score(folder / name, "--format", "jsonl").stdout.splitlines()
    ]
    assert [line["prompt"] for line in lines] == ["a red circle", "a blue square"]


def test_what_cannot_be_scored_is_a_row_with_its_reason(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no")
    os.mkfifo(folder / "pipe.png")
    (folder / "t.jsonl").write_text(
        '{"image": "red.png", "prompt": "a"}\n{"image": "gone.png", "prompt": "b"}\n'
        '{"image": "broken.png", "prompt": "c"}\n{"image": null, "prompt": "d"}\n'
        '{"image": "red.png", "prompt": null}\n{"image": "pipe.png", "prompt": 42}\n'
        '{"image": "red.png", "prompt": "\\ud800"}\n{"image": "red.png", "prompt": "a"}\n'
        '{"image": "~nobody-of-this-name/red.png", "prompt": "e"}\n'
    )
    for output in (folder / "scores.jsonl", folder / "scores.parquet"):
        done = score(folder / "t.jsonl", "--output", output)
        assert (done.exit_code, done.stderr) == (0, f"9 images, 7 failed: {output}\n")
    errors = {
        row["prompt"]: row["error"] for row in rows_of(folder / "scores.jsonl") if "error" in row
    }
    assert "There is no image file" in errors["b"]
    assert "its content is none of PNG" in errors["c"]
    assert f"{folder}/t.jsonl:4 names no image." == errors["d"]
    assert f"The prompt of {folder}/t.jsonl:5 must be a text that is not empty." == errors[""]
    assert "a regular file is needed, this is a named pipe" in errors["42"]
    assert "must be valid Unicode" in errors["\\ud800"]
    assert f"{folder}/t.jsonl:9: '~nobody" in errors["e"]


def test_paths_may_be_absolute_or_below_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "sub"))
    (folder / "t.csv").write_text(f"image,prompt\n{folder}/red.png,a\n~/blue.png,b\n")
    assert read_pairs(folder / "t.csv") == [
        Pair(f"{folder}/red.png", "a"),
        Pair(f"{folder}/sub/blue.png", "b"),
    ]
    for more in ("~nobody-at-all/t.csv",), ("--output", "~nobody-at-all/s.jsonl"):
        done = score(folder / "t.csv", *more)
        assert (done.exit_code, "there is none of that name" in done.stderr) == (2, True)


def test_columns_can_be_named_and_prompts_given(folder: Path) -> None:
    (folder / "t.csv").write_text("left,right\nred.png,a\n")
    done = score(folder / "t.csv")
    assert done.exit_code == 2
    assert "has no column of images (image, path, file," in done.stderr
    assert "The columns are: left, right. Name one with --image-column or" in done.stderr
    done = score(folder / "t.csv", "--image-column", "left", "--prompt-column", "right")
    assert done.exit_code == 0, done.output
    done = score(folder / "t.csv", "--image-column", "left")
    assert "has no column of prompts (prompt, prompts, text, caption)" in done.stderr
    assert score(folder / "t.csv", "--image-column", "left", "--prompt", "x").exit_code == 0
    (folder / "t.csv").write_text("image,path,prompt,text\nred.png,,a,b\n")
    assert read_pairs(folder / "t.csv") == [Pair(str(folder / "red.png"), "a")]
    assert "has prompts of its own. Leave out" in score(folder / "t.csv", "--prompt", "x").stderr
    (folder / "t.csv").write_text("path,file,prompt\nred.png,,a\n")
    assert "More than one column may hold an image: path, file." in score(folder / "t.csv").stderr
    (folder / "t.csv").write_text("image,prompt\n")
    assert "has no row" in score(folder / "t.csv").stderr
    (folder / "t.json").write_text('["red.png"]')
    assert "has no column of images" in score(folder / "t.json").stderr
    assert "cannot be read: No such file" in score(folder / "gone.csv").stderr


def test_images_need_a_prompt_and_may_stand_beside_tables(folder: Path) -> None:
    assert "Images need a --prompt" in score(folder / "red.png").stderr
    (folder / "t.csv").write_text("image,prompt\nsub/blue.png,b\n")
    done = score(folder / "red.png", folder / "t.csv", "--prompt", "a", "--format", "jsonl")
    assert [json.loads(line)["prompt"] for line in done.stdout.splitlines()] == ["a", "b"]
    for prompt in ("", " ", "\ud800"):
        with pytest.raises(InputError, match="The prompt must be"):
            score_files(FakeVerifier(), [str(folder / "red.png")], prompt)


# -- odd files -----------------------------------------------------------------------------------


def test_a_name_that_is_no_unicode_is_scored_and_escaped(folder: Path) -> None:
    odd = os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")
    Image.new("RGB", (4, 4), "red").save(odd)
    broken = os.fsdecode(os.fsencode(folder) + b"/\xfd.png")
    Path(broken).write_bytes(b"no")
    for name in ("scores.jsonl", "scores.parquet"):
        for _ in range(2):
            done = score(folder, "--prompt", "x", "--output", folder / name)
            assert (done.exit_code, done.stderr) == (0, f"4 images, 1 failed: {folder / name}\n")
    rows = {row["image"]: row for row in rows_of(folder / "scores.jsonl")}
    assert rows[f"{folder}/\\xff\\xfe.png"]["objective"] > 0
    assert f"{folder}/\\xfd.png is not" in rows[f"{folder}/\\xfd.png"]["error"]
    assert len(pd.read_parquet(folder / "scores.parquet")) == 4
    done = score(broken, "--prompt", "x")
    assert done.exit_code == 2
    assert "\\xfd.png is not: its content" in done.stderr


def test_an_image_that_the_verifier_refuses_costs_only_itself(folder: Path) -> None:
    class Picky(FakeVerifier):
        def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
            if any(np.asarray(image)[0, 0, 2] for image in images):
                raise InputError("Blue is refused.")
            return super().verify(images, prompts, **options)

    rows = score_files(Picky(), [str(folder / name) for name, _ in PAIRS], "x")
    assert [(Path(row["image"]).stem, row.get("error")) for row in rows] == [
        ("red", None),
        ("blue", "Blue is refused."),
    ]


def test_nothing_at_all_to_score_is_an_error(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"no")
    done = score(folder / "a.png", folder / "b.png", "--prompt", "x")
    assert done.exit_code == 2
    assert "None of 2 images could be scored. The first: An image file must be" in done.stderr


def test_copies_have_rows_of_their_own_and_are_judged_once(folder: Path) -> None:
    paths = [str(folder / f"{i}.png") for i in range(20)]
    for path in paths:
        Image.new("RGB", (4, 4), "red").save(path)
    verifier = FakeVerifier()
    for _ in range(2):
        rows = score_into(folder / "scores.jsonl", verifier, paths, prompt="x")
        assert verifier.trace == ["v1"]
        assert [row["image"] for row in rows] == paths
        assert [row["image"] for row in rows_of(folder / "scores.jsonl")] == paths


def test_a_file_of_one_prompt_goes_on_with_a_table(folder: Path) -> None:
    output, verifier = folder / "scores.jsonl", FakeVerifier()
    score_into(output, verifier, [str(folder / "red.png")], prompt="a")
    rows = score_pairs_into(output, verifier, [Pair(str(folder / "red.png"), "a")])
    assert verifier.trace == ["v1"]
    assert rows[0]["prompt"] == "a"


# -- two at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.parquet"])
def test_of_two_calls_at_once_the_second_is_refused(folder: Path, name: str) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(FakeVerifier):
        def verify(self, *arguments: Any, **options: Any) -> list[Verdict]:
            started.set()
            assert go_on.wait(60)
            return super().verify(*arguments, **options)

    paths = [str(folder / image) for image, _ in PAIRS]
    output = folder / name
    thread = threading.Thread(
        target=score_into, args=(output, Slow(), paths), kwargs={"prompt": "x"}
    )
    thread.start()
    assert started.wait(60)
    (folder / "link.jsonl").symlink_to(output)
    second = FakeVerifier()
    for place in (output, folder / "link.jsonl" if name.endswith("l") else output):
        with pytest.raises(
            RunError, match=r"Scores cannot be written to .* is in use: process \d+"
        ):
            score_into(place, second, paths, prompt="x")
    go_on.set()
    thread.join()
    assert second.trace == []
    score_into(output, second, paths, prompt="x")
    if name == "scores.jsonl":
        assert second.trace == []
        assert len(rows_of(output)) == 2
    assert not list(folder.glob("*.lock"))


def test_the_lock_ends_with_an_error(folder: Path) -> None:
    output = folder / "scores.jsonl"
    output.write_text("[]\n")
    for _ in range(2):
        with pytest.raises(RunError, match="must hold scores of this command"):
            score_into(output, FakeVerifier(), [str(folder / "red.png")], prompt="x")
    FolderLock(folder, "scores.jsonl.lock").release()


def test_an_output_that_is_a_pipe_is_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "scores.jsonl")
    with pytest.raises(RunError, match=r"cannot be written: a regular file is needed"):
        score_into(folder / "scores.jsonl", FakeVerifier(), [str(folder / "red.png")], prompt="x")


@pytest.mark.parametrize("content", [None, b"no table"])
def test_a_table_of_others_is_not_replaced(folder: Path, content: bytes | None) -> None:
    table = folder / "own.parquet"
    pd.DataFrame({"image": [str(folder / "a.png")], "prompt": ["a"]}).to_parquet(table)
    before = content or table.read_bytes()
    table.write_bytes(before)
    given = [folder / "a.png", "--prompt", "x"] if content else [table]
    done = score(*given, "--output", table)
    assert done.exit_code == 2
    assert "own.parquet is there and must be a table of scores" in done.stderr
    assert table.read_bytes() == before


def test_a_line_of_others_is_not_taken_for_one_that_was_cut_short(folder: Path) -> None:
    lines = folder / "own.jsonl"
    arguments = (folder, "--prompt", "x", "--output", lines)
    lines.write_text('{"prompt": "a"}')
    assert "own.jsonl must hold scores of this command" in score(*arguments).stderr
    assert lines.read_text() == '{"prompt": "a"}'
    for cut_short in ("", '{"ima', '{"image": "a.png", "prom', '{"image"\0\0\0', "\0\0"):
        lines.write_text(cut_short)
        assert score(*arguments).exit_code == 0
        assert len(rows_of(lines)) == 2


def test_an_empty_file_may_become_the_table(folder: Path) -> None:
    (folder / "new.parquet").touch()
    done = score(folder / "red.png", "--prompt", "x", "--output", folder / "new.parquet")
    assert len(pd.read_parquet(folder / "new.parquet")) == 1, done.output


def test_a_name_that_is_too_long_is_an_error(folder: Path) -> None:
    for name in ("x" * 300, "x" * 300 + ".parquet"):
        done = score(folder, "--prompt", "x", "--output", folder / name)
        assert (done.exit_code, "File name too long" in done.stderr) == (2, True), done.output
