"""The schema: its document is true of a real log; logs of schema 1 are read and continued."""

import json
import re
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from searches import InpaintReroll, SeedBeam

from tts_verifier import BestOfN, run
from tts_verifier.analysis.report import write_report
from tts_verifier.interfaces import Strategy
from tts_verifier.log import open_log, read_header, read_trials
from tts_verifier.runner import RunResult
from tts_verifier.testing import FakeGenerator, FakeVerifier

DOCUMENT = Path(__file__).parents[2] / "tts_verifier" / "log" / "SCHEMA.md"


def search(folder: Path, strategy: Strategy, **options: object) -> RunResult:
    judge = FakeVerifier(lambda image, prompt: {"passed": 1.0})
    prompts = options.pop("prompts", ["a red circle"])
    generator = options.pop("generator", None) or FakeGenerator()
    return run(prompts, generator, FakeVerifier(), strategy, folder=folder, judge=judge, **options)


def documented() -> dict[str, tuple[str, str]]:
    """Column -> its type and when it is null; `NAME` stands for a name of the run."""
    lines = [line.split("|") for line in DOCUMENT.read_text().splitlines() if "| `" in line]
    cells = [[cell.strip() for cell in line[1:-1]] for line in lines]
    return {column.strip("`"): (kind, null) for column, kind, _, null, _ in cells}


def as_documented(column: str, names: dict[str, list[str]]) -> str:
    """The document's name of a column."""
    for role, prefix in (("generator", "generator_"), ("judge", "judge_"), ("score", "")):
        if column in [prefix + name for name in names[role]]:
            return prefix + "NAME"
    return re.sub(r"^heatmap_.*_(path|sha256|box)$", r"heatmap_NAME_\1", column)


@pytest.mark.parametrize("strategy", [InpaintReroll(), SeedBeam(), BestOfN(3)])
def test_the_document_says_what_a_log_holds(tmp_path: Path, strategy: Strategy) -> None:
    search(tmp_path, strategy)
    schema = pq.read_schema(tmp_path / "trials.parquet")
    names: dict[str, list[str]] = {"generator": [], "judge": [], "score": [], "heatmap": []}
    for field in schema:
        if field.metadata:
            names[field.metadata[b"role"].decode()].append(field.metadata[b"name"].decode())
    table, columns_documented = pd.read_parquet(tmp_path / "trials.parquet"), documented()
    assert {as_documented(column, names) for column in schema.names} == set(columns_documented)
    for field in schema:
        kind, null = columns_documented[as_documented(field.name, names)]
        assert kind in (str(field.type).replace(" ", ""), "setting"), field.name
        assert null != "never" or table[field.name].notna().all(), field.name


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Logs that the version before schema 2 wrote: a finished run and a killed one."""
    with zipfile.ZipFile(Path(__file__).parent / "schema1.zip") as archive:
        archive.extractall(tmp_path / "old")
    return tmp_path / "old"


def trial_figures(folder: Path) -> list[tuple[object, ...]]:
    return [
        (t.id, t.round, t.objective, t.scores, t.judge, t.size, t.verdict and t.verdict.boxes)
        for t in read_trials(folder)
    ]


def test_a_finished_log_of_schema_1_is_read_as_one_of_today(old: Path, tmp_path: Path) -> None:
    search(tmp_path / "new", InpaintReroll(2))
    assert trial_figures(old / "finished") == trial_figures(tmp_path / "new")
    (session,) = read_header(old / "finished")["sessions"]
    assert set(session["busy"]) == set(session["devices"]) == {"generate", "verify"}
    assert all(t.cost.generate_seconds > 0 for t in read_trials(old / "finished")[:2])
    write_report([old / "finished", tmp_path / "new"], tmp_path / "report.html")


def test_options_that_schema_1_called_otherwise_are_the_same_run(tmp_path: Path) -> None:
    options = {"fit": "squash", "skeleton": False}
    old = {"verifier": options, "judge": None, "recipe": {"verifier": options}, "seed": 0}
    (tmp_path / "header.json").write_text(json.dumps({"schema_version": 1, "about": old}))
    now = {"fit": "squash", "answer_template": False}
    new = {"verifier": now, "judge": None, "recipe": {"verifier": now}, "seed": 0}
    open_log(tmp_path, new, {}).close()
    assert json.loads((tmp_path / "header.json").read_text())["about"] == new


def test_the_batch_size_that_schema_2_recorded_of_imagedoctor_decides_nothing(
    tmp_path: Path,
) -> None:
    now = {"fit": "squash", "answer_template": False}
    new = {"verifier": now, "generator": {"batch_size": 8}, "judge": None, "seed": 0}
    old = {**new, "verifier": {**now, "batch_size": 32}}
    (tmp_path / "header.json").write_text(json.dumps({"schema_version": 2, "about": old}))
    open_log(tmp_path, new, {}).close()
    assert json.loads((tmp_path / "header.json").read_text())["about"] == new


def test_a_killed_run_of_schema_1_goes_on_as_schema_3(old: Path, tmp_path: Path) -> None:
    prompts, generator = ["a red circle", "a blue star"], FakeGenerator(batch_size=2)
    search(old / "killed", BestOfN(3), generator=generator, prompts=prompts)
    search(tmp_path / "new", BestOfN(3), prompts=prompts)
    assert sorted(trial_figures(old / "killed")) == sorted(trial_figures(tmp_path / "new"))
    assert sum(int(call[1:]) for call in generator.trace) == 6 - 4
    assert json.loads((old / "killed" / "header.json").read_text())["schema_version"] == 3
    columns = pq.read_schema(old / "killed" / "trials.parquet").names
    assert {"generate_seconds", "verify_seconds", "generator_steps"} <= set(columns)
    assert not [name for name in columns if name.startswith("draw_")]
