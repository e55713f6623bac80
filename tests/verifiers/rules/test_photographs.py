"""The example and the benchmark that draw texts on real photographs."""

import importlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

pytest.importorskip("rapidocr")
pytest.importorskip("onnxruntime")
pytest.importorskip("skimage")

EXAMPLES = Path(__file__).parents[3] / "examples"
sys.path.append(str(EXAMPLES / "benchmarks"))
ocr_judge, photo_texts = map(importlib.import_module, ("ocr_judge", "photo_texts"))


def test_a_scene_and_its_image_follow_from_a_number():
    assert photo_texts.scene(7) == photo_texts.scene(7) != photo_texts.scene(8)
    (one, boxes), (other, _) = (photo_texts.render(photo_texts.scene(7)) for _ in range(2))
    assert np.array_equal(np.asarray(one), np.asarray(other))
    assert len(boxes) == len(photo_texts.scene(7).words)
    assert all(0 <= x1 < x2 <= 512 and 0 <= y1 < y2 <= 512 for x1, y1, x2, y2 in boxes)


def test_a_misspelt_scene_differs_in_one_letter_of_one_word():
    right = photo_texts.scene(3)
    wrong = photo_texts.misspelt(right)
    assert sum(a != b for a, b in zip(right.text, wrong.text, strict=True)) == 1
    assert wrong.words[wrong.wrong] != right.words[wrong.wrong]


def test_boxes_overlap_by_their_common_share():
    assert ocr_judge.overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert ocr_judge.overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0


@pytest.mark.slow
def test_the_benchmark_continues_a_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.parquet"
    for count in (1, 2):
        monkeypatch.setattr(sys, "argv", ["ocr_judge", str(path), "--count", str(count)])
        ocr_judge.main()
    rows = parquet.read_table(path).to_pylist()
    assert [row["number"] for row in rows] == [0, 1]
    assert all(row["score"] > row["wrong_score"] for row in rows)
    assert "| pairs in which the wrong text scores less" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_ranks_spellings_and_mends_a_sign(tmp_path, monkeypatch, capsys):
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["ocr_rerank", "--out", str(sheet)])
    runpy.run_path(str(EXAMPLES / "ocr_rerank.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    values = [float(line.split()[1]) for line in lines[:9]]
    assert values == [1.0, 0.909, 0.727] * 3
    assert lines[9] == "inpaint_reroll: 0.909 -> 1.000"
    with Image.open(sheet) as image:
        assert image.width > 1000
