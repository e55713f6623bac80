"""The examples of a training run: held-out pictures, the verdicts on them, and the truth."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from tts_verifier.errors import RunWarning
from tts_verifier.evaluation.rated import ASPECTS, MARKED_MAPS, RatedPicture
from tts_verifier.testing import FakeVerifier
from tts_verifier.training.examples import (
    Examples,
    examples_of,
    miniature_examples,
    show_checkpoint,
    write_examples,
)
from tts_verifier.training.richhf.miniature import make_miniature_richhf
from tts_verifier.types import Detail, Heatmap, Heatmaps, Verdict


class Halves(FakeVerifier):
    """Gives half of a score, and one map."""

    def verify(
        self, images: Sequence[object], prompts: Sequence[str], *, detail: Detail = "diagnose"
    ) -> list[Verdict]:
        grid = np.full((2, 2), 0.2, np.float32)
        maps = {} if detail == "score" else {"artifact": Heatmap(grid, (512, 256))}
        return [Verdict({"overall": 0.5}, Heatmaps(maps), text=f"Of {p}.") for p in prompts]


def picture(prompt: str) -> RatedPicture:
    marked = np.zeros((512, 512), np.uint8)
    marked[:256] = 255
    scores = dict.fromkeys(ASPECTS, 0.75)
    maps = dict.fromkeys(MARKED_MAPS, marked)
    return RatedPicture("a.png", Image.new("RGB", (512, 256), "red"), prompt, scores, maps)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_row_has_the_verdict_beside_the_truth(tmp_path: Path) -> None:
    shown = Examples([picture("a ring"), picture("a dot")], "dev")
    write_examples(tmp_path, Halves(), shown, step=7)
    row, other = parquet.read_table(tmp_path / "examples.parquet").to_pylist()
    words = {n: row[n] for n in ("picture", "split", "step", "prompt", "reply")}
    assert list(words.values()) == ["a.png", "dev", 7, "a ring", "Of a ring."]
    assert other["reply"] == "Of a dot."
    assert (row["overall"], row["rated_overall"]) == (0.5, 0.75)
    assert (row["aesthetics"], row["rated_aesthetics"]) == (None, 0.75)
    assert pixels(row["image"]).shape == (160, 320, 3)
    assert pixels(row["artifact_map"]).shape == (64, 128)
    assert set(pixels(row["artifact_map"]).flat) == {51}
    assert row["misalignment_map"] is None
    assert pixels(row["misalignment_marked"])[[0, -1], 0].tolist() == [255, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["examples.parquet"]


def test_the_miniatures_examples_are_held_out_and_the_same_each_time() -> None:
    one, two = miniature_examples(3), miniature_examples(3)
    assert [p.prompt for p in one.pictures] == [p.prompt for p in two.pictures]
    for shown in one.pictures:
        assert set(shown.scores) == set(ASPECTS)
        assert {m: shown.maps[m].shape for m in MARKED_MAPS} == dict.fromkeys(
            MARKED_MAPS, (128, 128)
        )
        assert all(shown.maps[m].dtype == np.uint8 for m in MARKED_MAPS)


def test_a_folders_examples_are_of_a_split_that_is_not_trained(tmp_path: Path) -> None:
    data = tmp_path / "data"
    sizes = {"train": 2, "dev": 3, "test": 1}
    make_miniature_richhf(output=str(data), sizes=sizes, sample_share=0, processes=1)

    def names(split: str, count: int = 2) -> tuple[str, int]:
        found = examples_of(data, split, count)
        assert all(p.name.startswith(found.split.partition(",")[0]) for p in found.pictures)
        return found.split, len(found.pictures)

    assert names("train") == ("dev", 2)
    assert names("dev", 8) == ("test", 1)
    # A split whose pictures were not copied is passed over.
    shutil.rmtree(data / "images" / "dev")
    assert names("train") == ("test", 1)
    (data / "test-00000-of-00001.tfrecord").unlink()
    assert names("train") == ("train, seen in training", 2)
    whole = data / "train-00000-of-00001.tfrecord"
    assert examples_of(whole, "train", 1).split == "train, seen in training"


def test_without_their_details_verdicts_have_no_maps(tmp_path: Path) -> None:
    write_examples(tmp_path, Halves(), Examples([picture("x")], "dev"), step=1, detail="score")
    (row,) = parquet.read_table(tmp_path / "examples.parquet").to_pylist()
    assert row["artifact_map"] is None


def test_a_failure_is_a_warning_as_the_training_is_kept(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with pytest.warns(RunWarning, match=r"for the report are not written: .*checkpoint.* again"):
        show_checkpoint(tmp_path, lambda: miniature_examples(1), step=1, device=cpu)
