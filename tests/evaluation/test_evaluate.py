"""A verifier measured on rated pictures: the figures, what is missing, and the table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tts_verifier.errors import InputError, RunError
from tts_verifier.evaluation import MEASURES, RatedPicture
from tts_verifier.evaluation.evaluate import evaluate, figures, score_names
from tts_verifier.evaluation.published import PUBLISHED
from tts_verifier.evaluation.rated import ASPECTS, MARKED_MAPS
from tts_verifier.evaluation.table import table_text, write_figures
from tts_verifier.interfaces import Verifier
from tts_verifier.types import Heatmap, Heatmaps, Verdict

MARKED = np.zeros((512, 512), np.uint8)
MARKED[:256, :256] = 255
EMPTY = np.zeros((512, 512), np.uint8)


def rated(index: int, **scores: float) -> RatedPicture:
    values = dict.fromkeys(ASPECTS, index / 10) | scores
    # Every other picture is without an artifact, and none is misaligned.
    maps = {"artifact": EMPTY if index % 2 else MARKED, "misalignment": EMPTY}
    return RatedPicture(f"{index}.png", Image.new("L", (8, 8), index), str(index), values, maps)


PICTURES = [rated(i) for i in range(10)]


class Repeating(Verifier):
    """Knows the ratings by the prompt, but for what a test takes away.

    Args:
        lost: prompt -> the scores that it does not give.
        maps: the heatmaps that it gives.
    """

    def __init__(self, lost: Mapping[str, set[str]] | None = None, maps: Any = MARKED_MAPS) -> None:
        self.lost, self.maps = lost or {}, maps
        self.seen: list[int] = []

    def verify(self, images: Any, prompts: Any, *, detail: Any = "diagnose") -> list[Verdict]:
        self.seen.append(len(images))
        return [self._verdict(int(prompt), detail) for prompt in prompts]

    def _verdict(self, index: int, detail: Any) -> Verdict:
        scores = dict.fromkeys(ASPECTS, index / 10)
        for name in self.lost.get(str(index), ()):
            scores[name] = math.nan
        truth = PICTURES[index].maps
        maps = {n: Heatmap((truth[n] / 255).astype(np.float32), (8, 8)) for n in self.maps}
        return Verdict(scores, Heatmaps(maps if detail == "diagnose" else {}), detail=detail)


def test_a_perfect_verifier_has_perfect_figures() -> None:
    found = figures(evaluate(Repeating(), PICTURES))
    for aspect in ASPECTS:
        assert found[aspect] == {
            "plcc": pytest.approx(1),
            "srcc": pytest.approx(1),
            "missing": 0,
        }
    assert found["average"] == {"plcc": pytest.approx(1), "srcc": pytest.approx(1)}
    artifact, misalignment = found["artifact"], found["misalignment"]
    assert (artifact["missing"], artifact["marked"]) == (0, 5)
    assert artifact["mse"] < 1e-5
    assert artifact["mse_empty"] == 0
    assert artifact["cc"] == pytest.approx(1, abs=1e-3)
    assert artifact["auc_judd"] == pytest.approx(1, abs=1e-3)
    assert (misalignment["marked"], misalignment["mse"]) == (0, 0)
    assert all(math.isnan(misalignment[m]) for m in MEASURES if m != "mse")


def test_missing_scores_are_counted_and_left_out() -> None:
    done = evaluate(Repeating({"9": {"overall"}, "0": {"overall", "aesthetics"}}), PICTURES)
    found = figures(done)
    assert [found[a]["missing"] for a in ASPECTS] == [0, 1, 0, 2]
    assert found["overall"]["plcc"] == pytest.approx(1)
    rows = [line.split() for line in table_text("x", done, 384).splitlines()]
    assert ["missing", "scores", "0", "1", "0", "2"] in rows
    assert done[9].as_row()["overall"] is None


def test_missing_maps_are_counted_and_left_out() -> None:
    done = evaluate(Repeating(maps=("artifact",)), PICTURES)
    found = figures(done)
    assert (found["artifact"]["missing"], found["misalignment"]["missing"]) == (0, 10)
    assert math.isnan(found["misalignment"]["mse"])
    assert "missing maps: 10 of 10; marked and compared: 0" in table_text("x", done, 384)
    assert done[0].as_row()["misalignment_mse"] is None
    quick = figures(evaluate(Repeating(), PICTURES, detail="score"))
    assert (quick["artifact"]["missing"], quick["overall"]["plcc"]) == (10, pytest.approx(1))


def test_a_verifier_may_have_other_names_for_the_aspects() -> None:
    done = evaluate(Repeating(), PICTURES, names={"overall": "aesthetics", "plausibility": "x"})
    assert [p.scores["overall"] for p in done] == [i / 10 for i in range(10)]
    assert score_names(done) == ["aesthetics", "semantic_alignment", "overall"]
    assert math.isnan(figures(done)["average"]["plcc"])


def test_a_letterboxed_map_is_compared_where_the_picture_is() -> None:
    grid = np.zeros((32, 32), np.float32)
    grid[8:16, :16] = 1
    verdict = Verdict(
        dict.fromkeys(ASPECTS, 0.5),
        Heatmaps({"artifact": Heatmap(grid, (8, 4), (0.0, 0.25, 1.0, 0.75))}),
    )

    class Wide(Repeating):
        def _verdict(self, index: int, detail: Any) -> Verdict:
            return verdict

    done = evaluate(Wide(), PICTURES[:1])
    assert done[0].maps["artifact"]["cc"] > 0.95


def test_the_resolution_is_that_which_was_asked_for() -> None:
    fine = Repeating(maps=("artifact",))
    done = evaluate(fine, PICTURES[:2], resolution=512)
    assert "maps compared at 512 x 512 pixels" in table_text("x", done, 512)
    # At the resolution of the marks nothing is blurred.
    assert done[0].maps["artifact"]["nss"] == pytest.approx(
        # A quarter is marked: (1 - 1/4) over the deviation.
        0.75 / math.sqrt(0.25 * 0.75),
        rel=1e-4,
    )


def test_progress_is_told_batch_by_batch() -> None:
    told: list[int] = []
    verifier = Repeating()
    evaluate(verifier, [PICTURES[i % 10] for i in range(70)], progress=told.append, resolution=2)
    assert (told, verifier.seen) == ([64, 70], [64, 6])


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        ([], {}, "at least one picture, got none"),
        (PICTURES, {"names": {"beauty": "x"}}, "An aspect is one of plausibility.*got beauty"),
        (PICTURES, {"resolution": 1}, "2 pixels a side or more, got 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(pictures: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(Repeating(), pictures, **options)


def test_the_table_has_the_published_rows() -> None:
    text = table_text("mine", evaluate(Repeating(), PICTURES), 384)
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()[::-1] if line}
    published = "0.727 / – 0.681 / – 0.808 / – 0.745 / – 0.741 / 0.724"
    assert " ".join(lines["ImageDoctor"][1:]) == published
    assert lines["mine"][1:4] == ["1.000", "/", "1.000"]
    assert "0.00724" in text
    assert {m.name for m in PUBLISHED} >= {"RichHF", "RAHF", "ImageDoctor"}
    assert "published on RichHF-18K's test split" in text


def test_figures_and_rows_are_written(tmp_path: Path) -> None:
    done = evaluate(Repeating({"3": {"overall"}}), PICTURES)
    write_figures(tmp_path / "new" / "x.json", "mine", done, 384)
    summary = json.loads((tmp_path / "new" / "x.json").read_text())
    assert summary["figures"]["overall"] == {
        "plcc": pytest.approx(1),
        "srcc": pytest.approx(1),
        "missing": 1,
    }
    assert summary["figures"]["misalignment"]["cc"] is None
    assert (summary["pictures"], summary["resolution"], summary["verifier"]) == (10, 384, "mine")
    assert summary["published"]["ImageDoctor"]["average"] == {"plcc": 0.741, "srcc": 0.724}
    write_figures(tmp_path / "x.parquet", "mine", done, 384)
    table = pd.read_parquet(tmp_path / "x.parquet")
    assert len(table) == 10
    assert table.overall.isna().sum() == 1
    assert table.artifact_cc.notna().sum() == 5
    assert set(table.verifier) == {"mine"}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    done = evaluate(Repeating(), PICTURES[:1])
    with pytest.raises(InputError, match=r"\.json or \.parquet file on a file system, got x\.csv"):
        write_figures(Path("x.csv"), "mine", done, 384)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"x\.json cannot be written"):
        write_figures(tmp_path / "file" / "x.json", "mine", done, 384)
