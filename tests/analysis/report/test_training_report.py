"""The page of a training run: what it shows, and folders that are torn or from somebody else."""

from __future__ import annotations

import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from html_pages import EVIL, Page
from PIL import Image
from pyarrow import parquet

from tts_verifier.analysis.report import write_report
from tts_verifier.analysis.report.training_run.curves import curve_of, curves_of
from tts_verifier.analysis.report.training_run.stored import MOST_VALUES, read_stored
from tts_verifier.cli.report import report_command
from tts_verifier.errors import InputError, RunError
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.training.common.run_folder import write_metrics

ABOUT = {"entry": "cold-start-2", "device": "cuda, a card", "processes": 2, "precision": "bf16"}


def row(step: int, **values: float) -> dict[str, float]:
    falls = {"step": step, "total": 2 - step / 10, "rows": 8.0, "seconds": 0.5, "skipped": 0.0}
    return falls | values


def png(mode: str = "RGB", size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (size, size), 99).save(buffer, "png")
    return buffer.getvalue()


def example(**changes: Any) -> dict[str, Any]:
    shown = {
        "picture": "dev/1.png",
        "split": "dev",
        "step": 10,
        "prompt": "a red ring",
        "reply": "<think>It is blue.</think>",
        "image": png(),
        "overall": 0.25,
        "rated_overall": 0.75,
        "artifact_map": png("L"),
        "artifact_marked": png("L"),
    }
    return shown | changes


def make(
    folder: Path,
    *,
    rows: list[dict[str, float]] | None = None,
    examples: list[dict[str, Any]] | None = None,
    settings: Any = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    default = {"init": "shapes", "steps": 20, "batch": 8, "block": None}
    (folder / "run.json").write_text(json.dumps(default if settings is None else settings))
    write_metrics(folder, [row(i) for i in range(10)] if rows is None else rows, ABOUT)
    if examples is not None:
        parquet.write_table(pa.Table.from_pylist(examples), folder / "examples.parquet")
    return folder


def page_of(folder: Path) -> Page:
    write_report([folder], folder / "report.html")
    return Page(folder / "report.html")


def words_of(page: Page) -> str:
    """The text of a page, with a space for every tag."""
    return " ".join(re.sub("(?s)<style>.*?</style>|<[^>]+>", " ", page.source).split())


def charts_of(page: Page) -> list[str | None]:
    return [attrs["aria-label"] for _, attrs in page.tags if attrs.get("role") == "img"]


def test_the_page_says_what_was_run_and_what_it_took(tmp_path: Path) -> None:
    page = page_of(make(tmp_path / "my run"))
    text = words_of(page)
    for words in (
        "my run",
        "10 of 20",
        "10 steps are left, which take about 5.0 s at its rate so far",
        "80 16 a second",
        "5.0 s of all steps, with loading and saving",
        "cuda, a card processes 2, precision bf16",
        "none yet began from shapes",
        "entry cold-start-2 init shapes steps 20 batch 8 block null",
        "The same in all steps: rows 8, seconds 0.5.",
        "0 skipped, because loss or gradient was not finite",
        # The means of the first and of the last two steps.
        "total 1.95 → 1.15",
    ):
        assert words in text, words
    assert "Examples" not in page.text
    assert charts_of(page) == ["total"]


def test_a_run_at_its_end_is_no_longer_called_unfinished(tmp_path: Path) -> None:
    folder = make(tmp_path, rows=[row(i) for i in range(20)])
    (folder / "checkpoint").mkdir()
    text = page_of(folder).text
    assert "has not finished" not in text
    assert "checkpoint/" in text


def test_every_metric_has_a_chart_in_which_skipped_steps_are_marked(tmp_path: Path) -> None:
    rows = [row(i, reward=math.sin(i), learning_rate=1e-9 * (i + 1)) for i in range(10)]
    rows[3] |= {"total": math.nan, "skipped": 1.0}
    rows[7] |= {"total": math.inf, "skipped": 1.0}
    write_metrics(make(tmp_path, rows=rows), [row(10, kl=0.5), row(11, kl=0.25)])
    page = page_of(tmp_path)
    assert charts_of(page) == ["total", "reward", "learning_rate", "kl"]
    assert page.source.count('class="mark"') == 4 * 2
    assert "2 skipped" in page.text
    assert ">5e-09<" in page.source
    assert "nan" not in "".join(re.findall("<svg class.*?</svg>", page.source))


def test_a_long_run_is_drawn_as_means_with_bands() -> None:
    steps = np.arange(601.0)
    curve = curve_of(steps, np.where(steps % 3 == 1, 3.0, 0.0))
    assert curve is not None
    assert (curve.each, len(curve.values)) == (3, 201)
    assert curve.steps[:2].tolist() == [1.0, 4.0]
    assert curve.values[[0, 1, -1]].tolist() == [1.0, 1.0, 0.0]
    assert (curve.low.max(), curve.high[0]) == (0.0, 3.0)
    short = curve_of(np.arange(4.0), np.array([1.0, math.nan, 2.0, 6.0]))
    assert short is not None
    assert short.steps.tolist() == [0.0, 2.0, 3.0]
    assert short.smoothed().tolist() == [1.5, 3.0, 4.0]
    assert curve_of(np.arange(2.0), np.full(2, math.nan)) is None


def test_a_single_spike_does_not_flatten_a_chart() -> None:
    values = np.tile([1.0, 2.0], 150)
    steps = np.arange(300.0)

    def title_and_ticks(**changes: float) -> tuple[str, list[float]]:
        spiky = values.copy()
        for place, value in changes.items():
            spiky[int(place[1:])] = value
        (chart,) = curves_of(steps, {"gradient": spiky}).charts
        (left,) = re.findall('<g class="ys">(.*?)</g>', chart)
        numbers = re.findall(r">(-?[\d.]+)<", left)
        return re.findall('class="title">(.*?)<', chart)[0], [float(n) for n in numbers]

    assert title_and_ticks() == ("gradient", [1.0, 1.5, 2.0])
    title, ticks = title_and_ticks(s7=1234.0)
    assert title == "gradient, up to 1.23e+03"
    assert max(ticks) <= 2.25
    title, ticks = title_and_ticks(s7=99.0, s9=-50.0)
    assert title == "gradient, up to 99, down to -50"
    assert (min(ticks) >= 0.75, max(ticks) <= 2.25) == (True, True)
    # What is not far out stays.
    assert title_and_ticks(s7=4.0)[0] == "gradient"


def test_what_a_chart_cannot_show_is_said_in_words() -> None:
    columns = {"a": np.full(3, 7.0), "b": np.full(3, math.nan), "skipped": np.array([0, 1.0, 0])}
    shown = curves_of(np.arange(3.0), columns)
    assert (shown.charts, shown.constants) == ((), (("a", 7.0),))
    assert (shown.absent, shown.skipped) == (("b",), 1)


def test_of_a_step_that_was_taken_twice_the_last_row_counts(tmp_path: Path) -> None:
    write_metrics(make(tmp_path), [row(8, total=5.0), row(9, total=6.0)])
    (tmp_path / "metrics" / "rows.draft").write_text("half a fi")
    stored = read_stored(tmp_path)
    assert stored.steps.tolist() == list(range(10))
    assert stored.columns["total"][-3:].tolist() == [1.3, 5.0, 6.0]


def test_an_example_has_its_reply_its_scores_and_its_maps_beside_the_truth(tmp_path: Path) -> None:
    blind = example(prompt="no maps", artifact_map=None, overall=None, reply="")
    page = page_of(make(tmp_path, examples=[example(), blind]))
    text = words_of(page)
    assert "after 10 steps of pictures from: dev" in text
    assert "overall 0.750 0.250 -0.500" in text
    assert "overall 0.750 – –" in text
    assert "<think>It is blue.</think>" in page.text
    assert text.count("no map in the reply") == text.count("There is no reply.") == 1
    sources = page.all("img", "src")
    # Each picture alone and below its maps, and three maps.
    assert len(sources) == 2 + 3 + 3
    assert all(source.startswith("data:image/") for source in sources)
    assert page.all("img", "class").count("ov") == 3


def test_the_page_needs_no_script_and_no_text_becomes_markup(tmp_path: Path) -> None:
    rows = [row(i, **{EVIL: float(i)}) for i in range(3)]
    texts = {"prompt": EVIL, "reply": EVIL, "picture": EVIL, "split": EVIL}
    evil = example(**texts, **{f"rated_{EVIL}": 1.0, f"{EVIL}_marked": png("L")})
    folder = make(tmp_path, rows=rows, examples=[evil], settings={EVIL: EVIL, "init": [EVIL]})
    write_metrics(folder, [row(3)], {"device": EVIL, EVIL: EVIL})
    page = page_of(folder)
    assert "script-src 'none'" in page.source
    assert not {"script", "link", "iframe", "object"} & {t for t, _ in page.tags} - {"link"}
    assert page.all("link", "href") == ["data:,"]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count(EVIL) >= 8


def test_the_command_makes_the_page_beside_the_run_or_where_it_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    done = CliRunner().invoke(report_command, [str(folder)])
    assert (done.exit_code, done.output) == (0, f"report: {folder / 'report.html'}\n")
    assert (folder / "report.html").is_file()
    search = tmp_path / "search"
    run(["a red ring"], FakeGenerator(), FakeVerifier(), BestOfN(1), folder=search)
    both = CliRunner().invoke(report_command, [str(search), str(folder)])
    assert both.exit_code == 2
    assert "A page is about one training run, or about searches; got 2 folders" in both.output
    # A search's folder stays one, whatever other files it has.
    (search / "run.json").write_text("{}")
    assert CliRunner().invoke(report_command, [str(search)]).exit_code == 0


def test_a_run_without_a_step_is_reported_on_later(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no metrics of a step yet"):
        write_report([make(tmp_path, rows=[])], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"run\.json must hold the settings of a training run: Expecting"),
        ("[1]", r"by their names, as JSON, and holds \[1\]"),
        ('{"a": ' * 100_000, r"run\.json must hold the settings"),
        (" " * (2**20 + 1), "must have at most 1048576 bytes"),
    ],
)
def test_settings_that_are_none_are_named(content: str, message: str, tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=message):
        write_report([tmp_path], tmp_path / "page.html")


def test_any_setting_is_shown(tmp_path: Path) -> None:
    odd = {"steps": -1, "init": None, "nested": {"a": [1, math.inf]}, "items": 3, "get": "x"}
    page = page_of(make(tmp_path, settings=odd))
    assert 'nested{"a": [1, Infinity]}items3getx' in page.text


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    make(tmp_path, examples=[example()])
    for name in ("metrics/00000000.parquet", "examples.parquet"):
        whole = (tmp_path / name).read_bytes()
        for content in (b"", whole[: len(whole) // 2], whole[:-9] + b"x" * 9, b"PAR1" * 9):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(RunError, match=rf"{name} must be a Parquet file.*Move it away"):
                write_report([tmp_path], tmp_path / "page.html")
        (tmp_path / name).write_bytes(whole)


def test_files_that_are_links_or_pipes_are_refused(tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere", examples=[example()])
    for number, name in enumerate(
        ("run.json", "metrics", "metrics/00000000.parquet", "examples.parquet")
    ):
        folder = make(tmp_path / str(number), examples=[example()])
        (folder / name).rename(folder / "moved")
        (folder / name).symlink_to(elsewhere / name)
        with pytest.raises(RunError, match=r"must hold files, not links"):
            write_report([folder], tmp_path / "page.html")
    folder = make(tmp_path / "pipe")
    os.mkfifo(folder / "examples.parquet")
    with pytest.raises(RunError, match="a regular file is needed, this is a named pipe"):
        write_report([folder], tmp_path / "page.html")


def write_table(folder: Path, table: pa.Table) -> None:
    parquet.write_table(table, folder / "metrics" / "00000000.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"total": [1.0]}, r"one of them step; one has total"),
        ({"step": ["one"]}, "a row whose step is no number"),
        ({"step": [None]}, "a row whose step is no number"),
        ({"step": [math.nan], "total": [1.0]}, "a row whose step is no number"),
        ({"step": pa.nulls(MOST_VALUES + 1)}, "50000001 rows of 1 columns are too many"),
    ],
)
def test_metrics_that_are_none_are_refused(columns: Any, message: str, tmp_path: Path) -> None:
    write_table(make(tmp_path), pa.table(columns))
    with pytest.raises(RunError, match=message):
        write_report([tmp_path], tmp_path / "page.html")


def test_examples_that_are_none_are_refused(tmp_path: Path) -> None:
    make(tmp_path, examples=[example()])
    far = pa.array([2**62], pa.timestamp("us"))
    for arrays, names, message in (
        ([pa.array([1])] * 2, ["a", "a"], "must have different columns"),
        ([far], ["a"], "cannot be read: .*Move it away"),
    ):
        parquet.write_table(pa.table(arrays, names=names), tmp_path / "examples.parquet")
        with pytest.raises(RunError, match=rf"examples\.parquet {message}"):
            write_report([tmp_path], tmp_path / "page.html")


def test_values_of_any_kind_and_size_give_a_page(tmp_path: Path) -> None:
    table = pa.table(
        {
            "step": [0, 5, 2**60],
            "words": ["a", "b", "c"],
            "flags": [True, False, None],
            "huge": [1e308, -1e308, 1e99],
            "tiny": [5e-324, 1e-323, 1e-90],
            "seconds": [0.0, 0.0, 0.0],
            "rows": [-1.0, 0.0, math.nan],
            "lists": [[1.0], [], None],
        }
    )
    for metadata in ({b"tts-verifier run": b"[" * 99_999}, {b"tts-verifier run": b"\xff"}, {}):
        write_table(make(tmp_path), table.replace_schema_metadata(metadata))
        page = page_of(tmp_path)
    assert charts_of(page) == ["flags", "tiny", "rows"]
    assert "huge 1e+99" in page.text
    assert not {"words", "lists"} & set(words_of(page).split())


def test_examples_of_any_kind_give_a_page(tmp_path: Path) -> None:
    shapes = [
        example(image=b"no picture", artifact_map=b""),
        example(image=png()[:40], overall=math.inf, rated_overall=math.nan),
        example(image=None, prompt=None, reply=None, picture=None),
    ]
    page = page_of(make(tmp_path, examples=shapes))
    assert words_of(page).count("no picture") == 3 * (1 + 2)
    assert "(an empty prompt)" in page.text
    odd = [{"prompt": 3, "image": "text", "rated_x": "high", "x": [1], "y_marked": 5}]
    assert "Examples" in words_of(page_of(make(tmp_path, examples=odd)))
    assert "Examples" not in words_of(page_of(make(tmp_path, examples=[])))
