"""RichHF-18K's fields, and how ratings, pictures and prompts are joined."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_richhf import fields, png

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.training.richhf.dataset import PROMPT_KEY, read_ratings, read_split
from tts_verifier.training.richhf.example import serialise_example
from tts_verifier.training.richhf.fields import parse_rating, prompt_words, serialise_rating
from tts_verifier.training.richhf.tfrecord import write_records


def test_a_split_is_read_with_pictures_prompts_scores_and_maps(write) -> None:
    split = read_split(write())
    assert [p.name for p in split.pictures] == ["test/a.png", "test/b.png", "test/c.png"]
    first = split.pictures[0]
    assert first.prompt == "a red ring"
    assert first.scores == {
        "plausibility": 0.25,
        "aesthetics": 0.5,
        "semantic_alignment": 0.75,
        "overall": 1.0,
    }
    artifact = first.maps["artifact"]
    assert (artifact.shape, artifact.dtype, artifact[0, 0], artifact[0, 50]) == (
        (512, 512),
        np.uint8,
        170,
        0,
    )
    assert not first.maps["misalignment"].any()
    assert split.missing_pictures == split.missing_prompts == ()
    with Image.open(first.picture) as picture:
        assert picture.size == (16, 8)


def test_a_rating_comes_back() -> None:
    record = serialise_example(fields("a"))
    assert serialise_rating(parse_rating(record)) == record
    assert parse_rating(record).aligned == (True, False, True)
    assert parse_rating(record).uid == "a"


def test_a_map_of_three_channels_is_read_as_grey() -> None:
    rating = parse_rating(
        serialise_example(fields("a", artifact_map=[png(np.full((512, 512, 3), 9, np.uint8))]))
    )
    assert rating.maps["artifact"].shape == (512, 512)


def test_a_prompt_is_split_into_words_as_the_labels_are() -> None:
    words = ["A", "red", "fox", "2", "eyes", "one", "tail"]
    assert prompt_words('A "red" fox: 2 eyes, one tail?') == words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overall_score": None}, r"needs the field 'overall_score', got aesthetics_score"),
        ({"overall_score": [b"1"]}, r"test/a.png: overall_score must be one float32"),
        ({"overall_score": np.array([1])}, r"overall_score must be one float32"),
        ({"overall_score": np.array([0.1, 0.2], np.float32)}, r"must be one float32"),
        ({"overall_score": np.array([3.5], np.float32)}, r"must be in \[0, 1\], got 3\.5.*\- 1"),
        ({"aesthetics_score": np.array([-0.1], np.float32)}, r"aesthetics_score must be in"),
        ({"artifact_score": np.array([math.nan], np.float32)}, r"artifact_score.*got nan"),
        ({"filename": np.array([1.0], np.float32)}, r"'filename' must hold one value of bytes"),
        ({"filename": [b"\xff"]}, r"'filename' must be UTF-8"),
        (
            {"artifact_map": [png(np.zeros((256, 512), np.uint8))]},
            r"artifact_map must be 512 x 512 pixels, got 512 x 256",
        ),
        (
            {"misalignment_map": [png(np.zeros((512, 512), np.uint16))]},
            r"must be grey with 8 bits, got the mode I",
        ),
        ({"artifact_map": [b"no"]}, r"artifact_map must be an encoded image, and is not"),
        ({"prompt_misalignment_label": [b"1 2"]}, r"must hold 0 and 1, got '1 2'"),
    ],
)
def test_a_field_out_of_its_range_is_named_with_file_and_record(write, changes, message) -> None:
    folder = write(**changes)
    with pytest.raises(InputError, match=rf"test\.tfrecord: record 0: .*{message}"):
        read_split(folder)


def test_a_score_that_leaves_the_range_by_rounding_is_kept_inside() -> None:
    record = serialise_example(fields("a", overall_score=np.array([1 + 2e-7], np.float32)))
    assert parse_rating(record).scores["overall"] == 1.0


def test_a_map_that_is_cut_short_is_named_when_it_is_used(write) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), np.uint8)
    split = read_split(write(artifact_map=[png(noise)[:5000]]))
    with pytest.raises(InputError, match=r"test/a\.png: artifact_map must be an encoded image"):
        split.pictures[0].maps["artifact"]


def test_missing_pictures_are_counted_and_named(write) -> None:
    folder = write()
    (folder / "images" / "b.png").unlink()
    with pytest.warns(RunWarning, match=r"1 of 3 pictures in .*images are missing.*test/b\.png"):
        split = read_split(folder)
    assert [p.name for p in split.pictures] == ["test/a.png", "test/c.png"]
    assert split.missing_pictures == ("test/b.png",)


def test_many_missing_pictures_are_not_all_named(tmp_path) -> None:
    records = [serialise_example(fields(f"n{i}")) for i in range(20)]
    write_records(tmp_path / "test.tfrecord", records)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"filename": "n0", "prompt": "a b c"}))
    with pytest.raises(InputError, match=r"20 of 20 pictures .* test/n7\.png and 12 more"):
        read_split(tmp_path)


def test_missing_prompts_are_counted_and_named(write) -> None:
    folder = write()
    (folder / "prompts.jsonl").write_text('{"filename": "a", "prompt": "a red ring"}')
    with pytest.warns(RunWarning, match=r"2 of 3 prompts are missing.*test/b\.png, test/c\.png"):
        split = read_split(folder)
    assert split.missing_prompts == ("test/b.png", "test/c.png")


def test_a_prompt_of_other_words_is_that_of_another_picture(write) -> None:
    folder = write()
    row = {"filename": "a.png", "prompt": "a blue ring and a star"}
    (folder / "prompts.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"has 3 words and 'a blue ring and a star' has 6"):
        read_split(folder)


def test_a_picture_that_names_another_prompt_is_an_error(write) -> None:
    folder = write()
    text = PngInfo()
    text.add_text(PROMPT_KEY, "a blue star")
    Image.new("RGB", (8, 8)).save(folder / "images" / "a.png", pnginfo=text)
    with pytest.raises(InputError, match=r"the file says 'a blue star', the prompts say 'a red"):
        read_split(folder)


def test_a_file_that_is_no_picture_is_named(write) -> None:
    folder = write()
    (folder / "images" / "a.png").write_text("no")
    with pytest.raises(InputError, match=r"a\.png must be a picture, and cannot be read"):
        read_split(folder)


def test_postscript_in_place_of_a_map_is_never_interpreted(write, monkeypatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.check_call", start)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 512 512\n%%EndComments\n{} loop\n"
    with pytest.raises(InputError, match=r"artifact_map must be an encoded image, and is not"):
        read_split(write(artifact_map=[text]))


def test_a_map_of_too_many_pixels_is_refused_before_it_is_decoded(write) -> None:
    # The header of a PNG file says how many pixels there are.
    bomb = bytearray(png(np.zeros((8, 8), np.uint8)))
    bomb[16:24] = struct.pack(">II", 20_000, 20_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(InputError, match=r"artifact_map must be an encoded image.* bomb"):
        read_split(write(artifact_map=[bytes(bomb)]))


def test_pictures_are_found_as_in_every_folder(write) -> None:
    folder = write()
    images = folder / "images"
    (images / ".ipynb_checkpoints").mkdir()
    shutil.copy(images / "a.png", images / ".ipynb_checkpoints" / "a.png")
    (images / "a.pdf").write_text("no picture")
    images.rename(folder / "elsewhere")
    images.mkdir()
    (images / "linked").symlink_to(folder / "elsewhere")
    (folder / "elsewhere" / "b.png").rename(folder / "elsewhere" / "b.PNG")
    assert [p.name for p in read_split(folder).pictures] == [
        "test/a.png",
        "test/b.png",
        "test/c.png",
    ]


@pytest.mark.parametrize("name", ["images/a.png", "test.tfrecord"])
def test_a_pipe_is_refused_and_not_waited_for(write, name: str) -> None:
    folder = write()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match="a regular file is needed, this is a named pipe"):
        read_split(folder / "test.tfrecord")


def test_data_that_are_not_there_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"one \.tfrecord file; there is none at .*nowhere"):
        read_split(tmp_path / "nowhere")


def test_two_pictures_of_one_name_are_an_error(write) -> None:
    folder = write()
    Image.new("RGB", (8, 8)).save(folder / "images" / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg and .*a\.png have the same"):
        read_split(folder)


def test_two_prompts_of_one_picture_are_an_error(write) -> None:
    folder = write()
    with open(folder / "prompts.jsonl", "a") as file:
        file.write('\n{"filename": "x/a.webp", "prompt": "another"}')
    with pytest.raises(InputError, match=r"prompts\.jsonl:4: x/a\.webp has two prompts"):
        read_split(folder)


@pytest.mark.parametrize("line", ["[]", '{"filename": "a"}', '{"filename": 1, "prompt": "x"}'])
def test_a_row_without_file_or_prompt_is_named(write, line) -> None:
    folder = write()
    (folder / "prompts.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"jsonl:1: a row needs a 'filename' and its 'prompt'"):
        read_split(folder)


def test_prompts_that_are_not_there_or_not_json_are_named(write) -> None:
    folder = write()
    (folder / "prompts.jsonl").write_text("no")
    with pytest.raises(InputError, match=r"prompts\.jsonl:1 must be JSON"):
        read_split(folder)
    (folder / "prompts.jsonl").unlink()
    with pytest.raises(InputError, match=r"there is none at .*prompts"):
        read_split(folder)


def test_prompts_may_be_parquet_or_a_folder_and_pictures_elsewhere(write, tmp_path) -> None:
    folder = write()
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    (folder / "prompts.jsonl").unlink()
    pd.DataFrame(rows).to_parquet(folder / "prompts.parquet")
    assert len(read_split(folder).pictures) == 3
    (folder / "prompts").mkdir()
    (folder / "prompts.parquet").rename(folder / "prompts" / "part.parquet")
    (folder / "images").rename(folder / "elsewhere")
    assert len(read_split(folder, images=folder / "elsewhere").pictures) == 3
    file = folder / "test.tfrecord"
    assert len(read_split(file, images=folder / "elsewhere", limit=2).pictures) == 2
    pd.DataFrame({"filename": ["a"]}).to_parquet(folder / "bad.parquet")
    with pytest.raises(InputError, match=r"bad\.parquet, row 1: a row needs a 'filename'"):
        read_split(folder, images=folder / "elsewhere", prompts=folder / "bad.parquet")


def test_shards_are_read_in_order_and_none_may_be_missing(tmp_path) -> None:
    for i, name in enumerate("abc"):
        path = tmp_path / f"train-{i:05d}-of-00003.tfrecord"
        write_records(path, [serialise_example(fields(name))])
    assert [r.uid for r in read_ratings(tmp_path, "train")] == ["a", "b", "c"]
    (tmp_path / "train-00001-of-00003.tfrecord").unlink()
    with pytest.raises(InputError, match=r"must have its 3 shards.*1 are missing.*00001-of-00003"):
        list(read_ratings(tmp_path, "train"))
    with pytest.raises(InputError, match=r"no test\.tfrecord.*It has the splits: train"):
        list(read_ratings(tmp_path, "test"))


def test_a_picture_that_occurs_twice_is_an_error(tmp_path) -> None:
    write_records(tmp_path / "test.tfrecord", [serialise_example(fields("a"))] * 2)
    with pytest.raises(InputError, match=r"record 1: test/a\.png occurs twice in test"):
        list(read_ratings(tmp_path))
