"""The miniature of RichHF-18K: its format, its truth, and how it goes on after a kill."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import Killed
from PIL import Image

from tts_verifier.errors import InputError, RunError
from tts_verifier.evaluation import plcc
from tts_verifier.shapes import parse_caption
from tts_verifier.shapes.captions import is_held_out
from tts_verifier.training.richhf import miniature, pictures
from tts_verifier.training.richhf.dataset import PROMPT_KEY, read_ratings, read_split
from tts_verifier.training.richhf.miniature import make_miniature_richhf, read_truths

SIZES = {"train": 10, "test": 5}


def fake_samples(captions: list[str], seed: int, device: str) -> np.ndarray:
    """Renders what the generator would draw."""
    generator = pictures.torch.Generator().manual_seed(seed)
    flawed = pictures.render_flawed([parse_caption(c) for c in captions], generator)
    return pictures.to_uint8(flawed.images).permute(0, 2, 3, 1).numpy()


def make(folder: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {"sizes": SIZES, "part": 4, "processes": 1}
    make_miniature_richhf(output=str(folder), **(settings | options))
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "draw_samples", fake_samples)


@pytest.fixture
def folder(tmp_path: Path, sampler: None) -> Path:
    return make(tmp_path / "data")


def test_the_data_set_has_the_format_of_richhf(folder: Path) -> None:
    assert len(list(read_ratings(folder, "train"))) == 10
    assert sorted(p.name for p in folder.glob("train-*")) == [
        f"train-{i:05d}-of-00003.tfrecord" for i in range(3)
    ]
    split = read_split(folder, "test")
    assert len(split.pictures) == 5
    for picture in split.pictures:
        with Image.open(str(picture.picture)) as image:
            assert (image.size, image.info[PROMPT_KEY]) == ((128, 128), picture.prompt)
        assert all(abs(s * 12 - round(s * 12)) < 1e-5 for s in picture.scores.values())
        assert set(np.unique(picture.maps["artifact"])) <= {0, 85, 170, 255}


def test_training_and_testing_share_no_caption_that_is_held_out(folder: Path) -> None:
    for picture in read_split(folder, "train").pictures:
        assert not is_held_out(parse_caption(picture.prompt))


def test_ratings_scatter_around_the_truth(tmp_path: Path, sampler: None) -> None:
    folder = make(tmp_path, sizes={"dev": 60}, part=60)
    truths, split = read_truths(folder, "dev"), read_split(folder, "dev")
    assert len(truths) == 60
    for name in ("semantic_alignment", "plausibility"):
        true = [truths[Path(p.name).stem].scores[name] for p in split.pictures]
        assert plcc([p.scores[name] for p in split.pictures], true) > 0.7
    for picture in split.pictures:
        truth = truths[Path(picture.name).stem]
        assert truth.reading.score == pytest.approx(truth.scores["semantic_alignment"])
        # Whoever finds a faulty region marks it where it is.
        if truth.artifact and picture.maps["artifact"].any():
            x1, y1, x2, y2 = (round(4 * v) for v in truth.artifact)
            assert picture.maps["artifact"][y1:y2, x1:x2].any()
    wrong = [r for r in read_ratings(folder, "dev") if not all(r.aligned)]
    assert 10 < len(wrong) < 50


def test_the_same_seed_gives_the_same_files(tmp_path: Path, folder: Path) -> None:
    assert contents(make(tmp_path / "again")) == contents(folder)
    other = make(tmp_path / "other", seed=1)
    assert not set(contents(other).values()) & set(contents(folder).values())


@pytest.mark.slow
def test_any_number_of_processes_makes_the_same_files(tmp_path: Path) -> None:
    renders = {"sample_share": 0.0, "sizes": {"test": 8}}
    one, two = (make(tmp_path / str(n), processes=n, **renders) for n in (1, 2))
    assert contents(one) == contents(two)


def test_after_a_kill_the_same_command_goes_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, killed, calls = miniature._write_picture, tmp_path / "killed", []

    def dying(path: Path, picture: Any) -> None:
        calls.append(path)
        if len(calls) == 7:
            path.write_bytes(b"half a pict")
            raise Killed
        write(path, picture)

    with monkeypatch.context() as patch:
        patch.setattr(miniature, "_write_picture", dying)
        with pytest.raises(Killed):
            make(killed)
    first = killed / "train-00000-of-00003.tfrecord"
    assert [p.name for p in killed.glob("*.tfrecord")] == [first.name]
    with pytest.raises(InputError, match="must have its 3 shards"):
        read_split(killed, "train")
    before = first.stat().st_mtime_ns
    make(killed)
    assert first.stat().st_mtime_ns == before
    assert contents(killed) == contents(folder)


def test_what_is_finished_is_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(miniature, "make_part", None)
    make(folder)
    assert capsys.readouterr().out.endswith(f"15 pictures: {folder}\n")


def test_progress_has_a_rate_and_the_time_left(
    tmp_path: Path, sampler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 of 15 pictures, ")
    assert lines[-2].startswith("15 of 15 pictures, ")
    assert lines[-2].endswith("/s, 0 s left")


def test_another_config_in_the_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(RunError, match=r"begun with other settings: seed is 0 there, 3 here\."):
        make(folder, seed=3)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(RunError, match="must be new, empty or begun by this command"):
        make(tmp_path)
    (tmp_path / "thesis.txt").rename(tmp_path / "miniature.json")
    for content in ("", "[]"):
        (tmp_path / "miniature.json").write_text(content)
        with pytest.raises(RunError, match=r"miniature\.json cannot be used"):
            make(tmp_path)


def test_a_kill_before_the_first_picture_does_not_lock_the_folder(
    tmp_path: Path, sampler: None
) -> None:
    (tmp_path / "miniature.draft").write_text("{")
    make(tmp_path, sizes={"test": 1})
    assert not (tmp_path / "miniature.draft").exists()
    assert len(read_split(tmp_path, "test").pictures) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": {"tset": 3}}, "sizes must name splits of train, dev, test, test_more, got tset"),
        ({"sizes": {}}, "got none"),
        ({"sizes": {"test": 0}}, r"sizes\.test must be at least 1, got 0"),
        ({"sample_share": 1.5}, r"sample_share must be in \[0, 1\], got 1\.5"),
        ({"sample_share": float("nan")}, "sample_share must be in"),
        ({"part": 0}, "part must be at least 1"),
        ({"processes": 0}, "processes must be a number of processes"),
        ({"device": "gpu"}, "device must be a device of this machine"),
    ],
)
def test_an_argument_out_of_range_is_named(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


def test_a_disk_that_refuses_is_an_error_that_says_how_to_go_on(
    tmp_path: Path, sampler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, records: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(miniature, "write_records", full)
    with pytest.raises(RunError, match=r"No space left.*the same command goes on"):
        make(tmp_path / "data")


def test_the_bundled_generator_draws_samples() -> None:
    captions = ["a red circle", "two blue stars"]
    drawn = pictures.draw_samples(captions, 5, "cpu")
    assert (drawn.shape, drawn.dtype) == ((2, 128, 128, 3), np.uint8)
    made = pictures.make_pictures([*captions, "a ring"], drawn, 0)
    assert sorted(p.source for p in made) == ["render", "sample", "sample"]
    assert {p.caption for p in made} == {*captions, "a ring"}


@pytest.mark.parametrize(
    ("caption", "shown", "words"),
    [
        ("a red circle", "a blue circle", [1, 0, 1]),
        ("two red rings", "three red rings", [0, 1, 1]),
        ("a photo of a star", "a photo of a ring", [1, 1, 1, 1, 0]),
        ("a ring to the left of a star", "a ring right of a star", [1, 1, 0, 0, 0, 0, 1, 1]),
        ("a red ring and a blue star", "a red ring", [1, 1, 1, 1, 1, 0, 0]),
    ],
)
def test_words_are_misaligned_where_their_constraint_fails(
    caption: str, shown: str, words: list[int]
) -> None:
    from tts_verifier.shapes import oracle, render

    reading = oracle(render(shown, 3), caption)
    assert pictures.aligned_words(caption, reading) == [bool(w) for w in words]


def test_a_thing_of_no_known_shape_is_an_artifact_of_a_sample() -> None:
    blob = np.full((128, 128, 3), 235, np.uint8)
    blob[50:60, 20:100] = blob[20:100, 50:60] = (222, 40, 40)
    blob[20:30, 20:100] = blob[90:100, 50:110] = (222, 40, 40)
    for seed in range(20):
        (made,) = pictures.make_pictures(["a red circle"], blob[None], seed)
        if not made.truth.kind or made.truth.kind == "melted":
            break
    assert made.truth.kind == "melted"
    assert made.artifacts == (made.truth.artifact,)
    assert made.truth.scores["plausibility"] == pytest.approx(0.4)
    row = pictures.truth_as_json(made) | {"prompt": made.caption}
    assert pictures.truth_from_json(row).reading.things == made.truth.reading.things
