"""The example with Ray Data scores a table, and continues from its checkpoint."""

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "score_with_ray_data.py"


def png(red: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (2, 2), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


def test_cells_without_a_picture_or_a_prompt_are_rows_with_an_error() -> None:
    spec = importlib.util.spec_from_file_location("score_with_ray_data", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images = [png(1), None, {"bytes": png(255), "path": None}, {"bytes": None}, png(2), png(2)]
    prompts = ["a", "a", 7.0, "a", None, " "]
    batch = {"image": images, "prompt": prompts, "id": range(6)}
    scored = module.Scorer("fake", "score")(batch)
    assert [bool(error) for error in scored["error"]] == [False, True, False, True, True, True]
    assert scored["semantic_alignment"][2] == 1
    assert "There is no picture" in scored["error"][1]
    assert "must be a text that is not empty" in scored["error"][4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--batch", "0"), "must be 1 or more, got 0"), ((), "has scores, to which Ray would add")],
)
def test_arguments_of_the_pipeline_are_checked(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "0.parquet").touch()
    command = [sys.executable, EXAMPLE, "in.parquet", tmp_path, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_a_pipeline_of_ray_scores_a_table_and_continues(tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    pictures = [*(png(i) for i in range(59)), b"no"]
    columns = {"id": range(60), "image": pictures, "prompt": [f"red {i}" for i in range(60)]}
    table = pa.table({name: list(values) for name, values in columns.items()})
    pq.write_table(table.slice(0, 40), tmp_path / "in.parquet")
    arguments = (tmp_path / "in.parquet", tmp_path / "out", "--verifier", "fake")
    command = [
        sys.executable,
        EXAMPLE,
        *arguments,
        "--block",
        "20",
        "--checkpoint",
        tmp_path / "ck",
    ]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    assert len(pd.read_parquet(tmp_path / "out")) == 40
    pq.write_table(table, tmp_path / "in.parquet")
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    scored = pd.read_parquet(tmp_path / "out").set_index("id").sort_index()
    assert scored.index.tolist() == list(range(60))
    assert scored.prompt[7] == "red 7"
    assert scored.semantic_alignment[7] == pytest.approx(7 / 255)
    assert "its content is none of" in scored.error[59]
