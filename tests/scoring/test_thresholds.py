"""Pictures are moved or copied by their scores: none is overwritten, none is lost."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tts_verifier import registry
from tts_verifier.cli.score import score_command
from tts_verifier.errors import InputError, RunError
from tts_verifier.scoring import PictureFolder, parse_limits, within
from tts_verifier.testing import FakeVerifier


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten reds in two folders that have the same names."""
    for i in range(10):
        place = tmp_path / "in" / ("a" if i < 5 else "b") / f"{i % 5}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (i * 25, 0, 0)).save(place)
    return tmp_path / "in"


def score(*arguments: object) -> Result:
    command = [*map(str, arguments), "--prompt", "x", "--verifier", "fake"]
    return CliRunner().invoke(score_command, command)


def contents(*folders: Path) -> list[bytes]:
    return sorted(p.read_bytes() for f in folders for p in f.rglob("*") if p.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("output", [(), ("--output", "scores.jsonl"), ("--output", "scores")])
def test_pictures_that_reach_a_score_are_moved(
    pictures: Path, tmp_path: Path, output: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, good = contents(pictures), tmp_path / "good"
    arguments = (pictures, *output, "--min", "semantic_alignment=0.45", "--move-to", good)
    planned = score(*arguments, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert planned.stderr.endswith(f"5 images would be moved to {good}.\n")
    assert not good.exists()
    done = score(*arguments)
    assert done.stderr.endswith(f"5 images were moved to {good}.\n")
    assert done.stdout == planned.stdout
    moved = dict(line.split()[1::2] for line in done.stdout.splitlines())
    assert moved == {f"{pictures}/b/{i}.png": f"{good}/{i}.png" for i in range(5)}
    assert names(good) == [f"{i}.png" for i in range(5)]
    assert contents(tmp_path / "in", good) == before
    # The same command again finds nothing left to do.
    assert "0 images were moved" in score(*arguments).stderr


@pytest.mark.parametrize("output", [(), ("--output", "scores")])
def test_a_set_is_good_and_different(
    tmp_path: Path, output: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    colours = {"a": (250, 0, 0), "b": (249, 0, 0), "c": (248, 0, 0), "d": (0, 90, 0)}
    for name, colour in colours.items():
        Image.new("RGB", (8, 8), colour).save(f"{name}.png")
    Path("broken.png").write_bytes(b"no picture")
    rows = [f"{name}.png,{prompt}" for prompt in ("red", "green") for name in (*colours, "broken")]
    Path("table.csv").write_text("\n".join(["image,prompt", *rows]) + "\n")
    command = ["table.csv", "--verifier", "fake", *output]
    done = CliRunner().invoke(score_command, [*command, "--set", "2", "--format", "jsonl"])
    assert done.exit_code == 0, done.output
    chosen = [json.loads(line) for line in done.stdout.splitlines()]
    found = [(row["prompt"], Path(row["image"]).name) for row in chosen]
    assert sorted(found) == [
        ("green", "a.png"), ("green", "d.png"), ("red", "a.png"), ("red", "d.png"),
    ]  # fmt: skip
    CliRunner().invoke(score_command, [*command, "--set", "2", "--copy-to", "shown"])
    assert names(Path("shown")) == ["a.png", "d.png"]


def test_nothing_is_overwritten(pictures: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    (good / "3.png").write_bytes(b"mine")
    before = contents(pictures, good)
    done = score(pictures, "--min", "objective=0", "--move-to", good, "--format", "jsonl")
    assert done.exit_code == 0, done.output
    assert contents(good) == before
    assert (good / "3.png").read_bytes() == b"mine"
    assert names(good) == sorted([*(f"{i}.png" for i in range(5)), "3-1.png", "3-2.png",
                                  *(f"{i}-1.png" for i in (0, 1, 2, 4))])  # fmt: skip
    targets = [json.loads(line)["to"] for line in done.stdout.splitlines()]
    assert sorted(Path(target).name for target in targets) == sorted(set(names(good)) - {"3.png"})


def test_copies_are_made_once(pictures: Path, tmp_path: Path) -> None:
    before = contents(pictures)
    arguments = (pictures, "--top", 7, "--copy-to", tmp_path / "good")
    for _ in range(2):
        assert "7 images were copied" in score(*arguments).stderr
    assert len(names(tmp_path / "good")) == 7
    assert contents(pictures) == before


def test_what_is_below_a_score_can_be_moved_too(pictures: Path, tmp_path: Path) -> None:
    arguments = ("--max", "objective=0.3", "--min", "objective=0.1", "--move-to", tmp_path / "bad")
    assert "2 images were moved" in score(pictures, *arguments).stderr


def test_limits_alone_choose_what_is_printed(pictures: Path, tmp_path: Path) -> None:
    shown = score(pictures, "--min", "objective=0.6", "--format", "jsonl").stdout.splitlines()
    assert [Path(json.loads(line)["image"]).stem for line in shown] == ["4", "3"]
    done = score(pictures, "--min", "objective=0.6", "--output", tmp_path / "out")
    assert done.stderr.endswith("2 of them are within the limits.\n")


def test_rows_are_sorted_by_any_score(pictures: Path) -> None:
    done = score(pictures, "--sort", "plausibility", "--format", "jsonl", "--top", 3)
    stems = [Path(json.loads(line)["image"]).parent.name for line in done.stdout.splitlines()]
    assert stems == ["a", "a", "a"]


def test_a_picture_without_that_score_stays(pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no")
    limits = parse_limits(["overall=-5"], ["overall=5"])
    assert not within({"image": "a", "objective": None, "overall": None}, limits)
    assert not within({"image": "a", "objective": None, "error": "no"}, limits)
    arguments = (pictures, "--top", 20, "--move-to", tmp_path / "good")
    assert "10 images were moved" in score(*arguments).stderr
    assert [path.name for path in pictures.rglob("*.*")] == ["broken.png"]


def test_a_verdict_that_failed_moves_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure() -> FakeVerifier:
        return FakeVerifier(unparsable=lambda image, prompt: image.getpixel((0, 0))[0] > 100)

    monkeypatch.setattr(registry, "builder", lambda kind, name: unsure)
    for limit in ("--min", "--max"):
        value = "overall=-1" if limit == "--min" else "overall=2"
        done = score(pictures, limit, value, "--copy-to", tmp_path / limit[2:])
        assert "5 images were copied" in done.stderr


def test_pictures_that_are_already_there_stay(pictures: Path) -> None:
    arguments = (pictures, "--min", "objective=0", "--move-to", pictures / "a")
    assert "5 images were moved" in score(*arguments).stderr
    assert "0 images were moved" in score(*arguments).stderr
    assert len(names(pictures / "a")) == 10


def test_links_are_copied_and_not_moved(pictures: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(pictures / "a" / "4.png")
    done = score(link, "--top", 1, "--move-to", tmp_path / "good")
    assert "link.png is a link and stays where it is; --copy-to copies" in done.stderr
    assert link.is_symlink()
    score(link, "--top", 1, "--copy-to", tmp_path / "good")
    assert (tmp_path / "good" / "link.png").read_bytes() == link.read_bytes()
    assert not (tmp_path / "good" / "link.png").is_symlink()


def test_a_picture_that_is_gone_is_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"gone\.png is no file any more and is left out"):
        assert PictureFolder(tmp_path / "good").take(str(tmp_path / "gone.png")) is None


def test_another_disk_gets_a_copy_before_the_picture_goes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, before = os.replace, contents(pictures)

    def other_disk(source: Any, goal: Any) -> None:
        if str(source).startswith(str(pictures)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, goal)

    monkeypatch.setattr(os, "replace", other_disk)
    assert "10 images were moved" in score(
        pictures, "--min", "objective=0", "--move-to", tmp_path / "good"
    ).stderr  # fmt: skip
    assert contents(tmp_path / "good") == before
    assert not contents(pictures)


def test_a_full_disk_loses_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(pictures)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(RunError, match=r"cannot be copied to .*good: No space left"):
        PictureFolder(tmp_path / "good", copies=True).take(str(pictures / "a" / "0.png"))
    assert contents(pictures) == before
    assert names(tmp_path / "good") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min", "overall"), "A limit must be a score and a number, as overall=0.6, got 'ov"),
        (("--min", "overall=nan"), "A limit must be a score and a number"),
        (("--max", "=1"), "A limit must be a score and a number"),
        (("--min", "overal=1"), "must name scores that the verifier gives, got 'overal'. Did you"),
        (("--sort", "beauty"), "must name scores that the verifier gives, got 'beauty'"),
        (("--move-to", "x"), "Say which pictures are meant: give --min, --max, --top or --set"),
        (("--top", "1", "--set", "2"), "--top keeps the best, --set good and different ones"),
        (("--top", "1", "--move-to", "x", "--copy-to", "y"), "Give one of --move-to and --copy-to"),
        (("--min", "a=2", "--max", "a=1"), "--min must not exceed --max, got a=2 and a=1"),
        (("--min", "overall=0", "--move-to", ""), "a path must not be empty"),
        (("--output", ""), "a path must not be empty"),
        (("--dry-run",), "--dry-run says what --move-to or --copy-to would do"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    pictures: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = contents(pictures)
    done = score(pictures, *arguments)
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert contents(pictures) == before


def test_pictures_inside_of_something_cannot_be_moved(pictures: Path, tmp_path: Path) -> None:
    content = (pictures / "a" / "0.png").read_bytes()
    pq.write_table(pa.table({"image": [content]}), tmp_path / "t.parquet")
    done = score(tmp_path / "t.parquet", "--min", "overall=0", "--move-to", tmp_path / "x")
    assert done.exit_code == 2
    assert "Only pictures that are files can be moved, copied or form a set" in done.stderr
    done = score(tmp_path / "t.parquet", "--set", 2)
    assert "form a set" in done.stderr


def test_an_unknown_score_of_a_verifier_that_names_none_is_refused_before_anything_moves(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        registry, "builder", lambda kind, name: lambda: FakeVerifier(lambda *_: {"bright": 1.0})
    )
    done = score(pictures, "--min", "brigth=0", "--move-to", tmp_path / "good")
    assert "got 'brigth'. Did you mean 'bright'?" in done.stderr
    assert not (tmp_path / "good").exists()


def test_names_that_are_no_text_or_as_long_as_names_can_be_are_moved_too(
    pictures: Path, tmp_path: Path
) -> None:
    content = (pictures / "b" / "4.png").read_bytes()
    long = "a" * 251 + ".png"
    (pictures / "a" / long).write_bytes(content)
    Image.new("RGB", (2, 2), "red").save(pictures / "b" / long)
    raw = os.fsencode(pictures) + b"/\xff\xfe.png"
    Path(os.fsdecode(raw)).write_bytes(content)
    for number, option in enumerate(("--copy-to", "--copy-to", "--move-to")):
        kept, goal = (("--set", 9) if number == 1 else ()), tmp_path / f"{number}"
        done = score(pictures, "--min", "objective=0.7", *kept, option, goal)
        assert "4 images were" in done.stderr, done.stderr
        found = sorted(os.listdir(os.fsencode(goal)))
        assert found == [b"4.png", b"a" * 249 + b"-1.png", os.fsencode(long), b"\xff\xfe.png"]


def test_a_picture_that_may_not_go_is_not_copied_time_after_time(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, unlink = os.replace, os.unlink

    def other_disk(source: Any, goal: Any) -> None:
        if str(source).startswith(str(pictures)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, goal)

    def read_only(path: Any, **place: Any) -> None:
        if str(path).startswith(str(pictures)):
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, **place)

    monkeypatch.setattr(os, "replace", other_disk)
    monkeypatch.setattr(os, "unlink", read_only)
    for _ in range(2):
        with pytest.raises(RunError, match=r"Read-only file system\. It is where it was"):
            PictureFolder(tmp_path / "good").take(str(pictures / "a" / "0.png"))
        assert names(tmp_path / "good") == []


def test_a_folder_that_cannot_be_is_refused_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file/good", "link"):
        with pytest.raises(InputError, match=r"is a file or a link to nothing\. Name another one"):
            PictureFolder(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(InputError, match="a folder that may be written"):
        PictureFolder(tmp_path / "a" / "b")
