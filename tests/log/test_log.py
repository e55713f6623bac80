"""The run folder: what other tools read, and what a continued run reads back."""

import json
import math
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from hostile_folders import forge
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from killing import DyingGenerator, Killed, images_generated
from PIL import Image
from searches import InpaintReroll, SeedBeam

from tts_verifier import Objective, run
from tts_verifier.errors import InputError, RunError
from tts_verifier.identity import proposal_from_json, proposal_to_json, trial_id
from tts_verifier.interfaces import Strategy
from tts_verifier.log import open_log, read_header, read_outlines, read_trials
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.zero_order import ZeroOrder
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import (
    Budget,
    Continue,
    Cost,
    Draw,
    Heatmap,
    Heatmaps,
    InFile,
    InMemory,
    Job,
    Look,
    LowBand,
    Mask,
    Near,
    Prompt,
    Proposal,
    Repaint,
    Sample,
    Trial,
    Verdict,
)

PROMPTS = ["a red circle", 'a "blue" star\n<b>', "一只猫"]
SEARCHES = [BestOfN(5), SeedBeam(), ZeroOrder(), InpaintReroll()]


def finished(folder: Path, strategy: Strategy = SEARCHES[3], **options: object) -> pd.DataFrame:
    run(PROMPTS, FakeGenerator(batch_size=4), FakeVerifier(), strategy, folder=folder, **options)
    return pd.read_parquet(folder / "trials.parquet")


def values(trial: Trial) -> dict[str, object]:
    """All of a trial but the clock's seconds and the state, which goes when a run ends."""
    fields = {name: getattr(trial, name) for name in Trial.__dataclass_fields__}
    fields["image"] = trial.image and trial.image.load().tobytes()
    if verdict := fields.pop("verdict"):
        maps = {name: verdict.heatmaps.on_grid(name) for name in verdict.heatmaps}
        fields["heatmaps"] = {n: (m.grid.tobytes(), m.size, m.box) for n, m in maps.items()}
        fields["verdict"] = (verdict.scores, verdict.boxes, verdict.text, verdict.detail)
    fields["cost"] = (trial.cost.network_evaluations, trial.cost.verifier_calls)
    del fields["state"]
    return {name: str(value) for name, value in fields.items()}


# -- what other tools see ------------------------------------------------------------------


def test_one_read_gives_the_one_table(tmp_path: Path) -> None:
    judge = FakeVerifier(lambda image, prompt: {"passed": 1.0})
    table = finished(tmp_path, judge=judge)
    assert " ".join(table.columns) == (
        "prompt_id prompt category trial_id parent_id round kind seed proposal "
        "mask_sha256 mask_path "
        "generator_model generator_size generator_steps "
        "network_evaluations vae_passes verifier_calls generate_seconds verify_seconds progress "
        "semantic_alignment aesthetics plausibility overall objective judge_passed "
        "boxes reply detail image_path image_sha256 image_width image_height "
        "heatmap_misalignment_path heatmap_misalignment_sha256 heatmap_misalignment_box "
        "heatmap_artifact_path heatmap_artifact_sha256 heatmap_artifact_box "
        "state_path state_sha256 error chosen"
    )
    assert len(table) == 3 * (3 + 1 + 2)
    assert table.prompt.unique().tolist() == PROMPTS
    assert table.chosen.sum() == 3
    assert set(table.kind) == {"draw", "look", "repaint"}


def test_duckdb_reads_it_without_help(tmp_path: Path) -> None:
    finished(tmp_path)
    rows = duckdb.sql(
        f"select prompt_id, max(objective), max(objective) filter (chosen), sum(chosen::int) "
        f"from '{tmp_path}/trials.parquet' group by 1 order by 1"
    ).fetchall()
    assert [(name, best == chosen, n) for name, best, chosen, n in rows] == [
        ("0000", True, 1),
        ("0001", True, 1),
        ("0002", True, 1),
    ]
    edges = duckdb.sql(f"select boxes[1].x2 from '{tmp_path}/trials.parquet' limit 1").fetchall()
    assert edges == [(8.0,)]


def test_images_and_maps_are_files_beside_it(tmp_path: Path) -> None:
    row = finished(tmp_path).iloc[0]
    with Image.open(tmp_path / row.image_path) as image:
        assert image.size == (row.image_width, row.image_height) == (16, 16)
    with Image.open(tmp_path / row.heatmap_artifact_path) as grid:
        assert (grid.mode, grid.size) == ("L", (6, 6)), "8 bits, on the decoder's grid"
    assert row.heatmap_artifact_box == {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}


def test_a_mask_is_an_image_and_a_hash(tmp_path: Path) -> None:
    table = finished(tmp_path)
    row = table[table.kind == "repaint"].iloc[0]
    with Image.open(tmp_path / row.mask_path) as mask:
        assert (mask.mode, mask.size) == ("1", (16, 16))
    assert json.loads(row.proposal)["mask"] == row.mask_sha256
    assert row.mask_sha256 in row.mask_path


def test_what_failed_is_null_and_never_sorts(tmp_path: Path) -> None:
    dark = FakeVerifier(unparsable=lambda image, prompt: image.getpixel((0, 0))[0] < 128)
    broken = FakeGenerator(fails=lambda job: job.proposal.seed % 3 == 0)
    run(["a red circle"], broken, dark, BestOfN(16), folder=tmp_path)
    table = f"'{tmp_path}/trials.parquet'"
    rows = duckdb.sql(f"select error, objective, detail, reply, chosen from {table}").fetchall()
    reasons = {error for error, *_ in rows}
    assert reasons == {
        None,
        "fails on purpose",
        "the reply has no usable semantic_alignment, aesthetics, plausibility, overall",
    }
    assert all((objective is None) == bool(error) for error, objective, *_ in rows)
    best = duckdb.sql(f"select chosen from {table} order by objective desc limit 1").fetchall()
    assert best == [(True,)]


def test_the_header_says_what_was_run(tmp_path: Path) -> None:
    finished(tmp_path, BestOfN(2), seed=3, budget=Budget(candidates=9))
    header = read_header(tmp_path)
    assert header["schema_version"] == 3
    assert header["about"] == {
        "recipe": None,
        "generator": {"model": "fake", "size": 16, "steps": 10},
        "verifier": {"model": "fake"},
        "judge": None,
        "strategy": {"class": "BestOfN", "n": 2},
        "objective": {"semantic_alignment": 0.8, "aesthetics": 0.1, "plausibility": 0.1},
        "seed": 3,
        "budget": {
            "candidates": 9,
            "network_evaluations": None,
            "verifier_calls": None,
            "seconds": None,
        },
        "detail": "diagnose",
        "prompts": {f"{i:04d}": text for i, text in enumerate(PROMPTS)},
    }
    assert set(header) == {
        "schema_version", "about", "python", "versions", "git_revision", "device", "sessions",
        "run", "table",
    }  # fmt: skip
    assert header["versions"]["pyarrow"]


def test_only_finished_files_are_left(tmp_path: Path) -> None:
    finished(tmp_path, SeedBeam())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "header.json", "trials.parquet", "trials.sha256", "images", "heatmaps", "parts", "states",
    }  # fmt: skip
    assert list((tmp_path / "parts").iterdir()) == []
    assert list((tmp_path / "states").iterdir()) == []
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_what_a_search_sees_is_what_the_files_hold(tmp_path: Path) -> None:
    grid = np.linspace(0, 1, 77, dtype=np.float32).reshape(7, 11)
    heatmap = Heatmap(grid, (22, 14), (0.0, 0.1, 1.0, 0.9))
    picture = Image.effect_noise((22, 14), 50).convert("RGB")
    item = Trial(
        "x", Prompt("p", "p"), 0, Draw(1), 1.0, Verdict({}, Heatmaps({"artifact": heatmap})), 0.5,
        image=InMemory(picture), size=(22, 14),
    )  # fmt: skip
    with open_log(tmp_path, {}, {}) as log:
        (logged,) = log.append([item])
        assert values(logged) == values(read_trials(tmp_path)[0])
        assert isinstance(logged.image, InFile)
        assert isinstance(logged.verdict.heatmaps.stored["artifact"], InFile)


def sample(seed: int) -> Sample:
    image = Image.effect_noise((16, 16), 10 + seed).convert("RGB")
    return Sample(Job(Prompt("p", "p"), Draw(seed), id=f"t{seed}"), image)


def verified(sample: Sample, image: Image.Image | None = None) -> Trial:
    job, stored = sample.job, InMemory(image or sample.image)
    return Trial(job.id, job.prompt, 0, job.proposal, 1.0, objective=0.5, image=stored)


class SlowImage(Image.Image):
    """An image whose encoding waits until it is told to go on."""

    go_on: threading.Event

    @classmethod
    def of(cls, image: Image.Image) -> "SlowImage":
        slow = cls()
        slow.__setstate__(image.__getstate__())
        slow.go_on = threading.Event()
        return slow

    def save(self, *arguments: Any, **options: Any) -> None:
        assert self.go_on.wait(60)
        super().save(*arguments, **options)


def test_rows_wait_for_no_image_but_their_own(tmp_path: Path) -> None:
    first, others = sample(0), [sample(1), sample(2)]
    slow = SlowImage.of(others[0].image)
    others[0] = replace(others[0], image=slow)
    with open_log(tmp_path, {}, {}) as log:
        log.start_images([first], note=True)
        log.start_images(others, note=True)
        log.append([verified(first)])
        assert [trial.id for trial in read_trials(tmp_path)] == ["t0"]
        slow.go_on.set()
        log.flush()
        assert sorted(json.loads((tmp_path / "waiting/t1.json").read_bytes())) == ["t1", "t2"]


def test_of_two_images_of_a_trial_the_verified_one_is_kept(tmp_path: Path) -> None:
    early, other = sample(0), sample(1).image
    slow = SlowImage.of(early.image)
    early = replace(early, image=slow)
    with open_log(tmp_path, {}, {}) as log:
        log.start_images([early])
        threading.Timer(0.05, slow.go_on.set).start()
        log.append([verified(early, other)])
    (trial,) = read_trials(tmp_path)
    assert trial.image is not None
    assert other is not None
    assert trial.image.load().tobytes() == other.tobytes()


# -- reading back, continuing --------------------------------------------------------------


@pytest.mark.parametrize("strategy", SEARCHES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("lives", [0, 2])
def test_a_killed_run_continues_as_if_nothing_had_been(
    tmp_path: Path, strategy: Strategy, lives: int
) -> None:
    whole = run(PROMPTS, FakeGenerator(), FakeVerifier(), strategy, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        run(PROMPTS, DyingGenerator(lives), FakeVerifier(), strategy, folder=folder)
    verified_before = read_trials(folder)
    assert len(verified_before) >= lives
    generator = FakeGenerator()
    again = run(PROMPTS, generator, FakeVerifier(), strategy, folder=folder)
    assert [values(t) for t in again.trials] == [values(t) for t in whole.trials]
    kept = {t.id for t in verified_before}
    table = pd.read_parquet(folder / "trials.parquet")
    assert table.trial_id.is_unique
    assert set(table.trial_id) == {t.id for t in whole.trials}
    generated = images_generated(generator)
    new = [t for t in again.trials if t.id not in kept and not isinstance(t.proposal, Look)]
    assert generated == len(new), "nothing verified is generated again"


def test_states_outlive_a_kill(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(PROMPTS, DyingGenerator(2), FakeVerifier(), SeedBeam(), folder=tmp_path)
    previews = [t for t in read_trials(tmp_path) if t.progress < 1]
    assert previews
    assert {t.state.load()["latents"].shape for t in previews} == {(3, 4, 4)}
    for path in (tmp_path / "states").iterdir():
        path.unlink()
    again = run(PROMPTS, FakeGenerator(), FakeVerifier(), SeedBeam(), folder=tmp_path)
    whole = run(PROMPTS, FakeGenerator(), FakeVerifier(), SeedBeam())
    assert [t.objective for t in again.trials] == [t.objective for t in whole.trials]


def test_a_finished_run_generates_nothing_again(tmp_path: Path) -> None:
    finished(tmp_path)
    before = (tmp_path / "trials.parquet").stat()
    generator, verifier = FakeGenerator(), FakeVerifier()
    result = run(PROMPTS, generator, verifier, SEARCHES[3], folder=tmp_path)
    assert generator.trace == verifier.trace == []
    assert (tmp_path / "trials.parquet").stat().st_mtime_ns == before.st_mtime_ns
    assert len(result.trials) == 18


def test_a_kill_between_the_table_and_the_parts_doubles_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(PROMPTS, DyingGenerator(2), FakeVerifier(), SEARCHES[3], folder=tmp_path)
    shutil.copytree(tmp_path / "parts", tmp_path / "saved")
    finished(tmp_path)
    for part in (tmp_path / "saved").iterdir():
        shutil.move(part, tmp_path / "parts" / part.name)
    assert len(read_trials(tmp_path)) == 18
    table = finished(tmp_path)
    assert len(table) == 18
    assert list((tmp_path / "parts").iterdir()) == []


def test_parts_are_readable_while_it_runs(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(PROMPTS, DyingGenerator(2), FakeVerifier(), BestOfN(5), folder=tmp_path)
    rows = duckdb.sql(f"select count(*), count(chosen) from '{tmp_path}/parts/*.parquet'")
    assert rows.fetchall() == [(8, 0)]


def test_parts_of_different_columns_become_one_table(tmp_path: Path) -> None:
    class Late(FakeVerifier):
        """Gives its second score and its maps from the second batch on."""

        def __init__(self):
            first, later = {"a": 0.5}, {"a": 0.5, "b": 0.25}
            super().__init__(lambda image, prompt: later if len(self.trace) > 1 else first)

        def verify(self, images, prompts, *, detail="diagnose"):
            detail = "diagnose" if self.trace else "score"
            return super().verify(images, prompts, detail=detail)

    objective = Objective({"a": 1.0})
    generator = FakeGenerator(batch_size=2)
    run(PROMPTS[:1], generator, Late(), BestOfN(4), objective=objective, folder=tmp_path)
    table = pd.read_parquet(tmp_path / "trials.parquet")
    assert table.b.tolist()[2:] == [0.25, 0.25]
    assert table.b.isna().tolist()[:2] == [True, True]
    assert table.heatmap_artifact_path.isna().tolist() == [True, True, False, False]


# -- folders that cannot be used -----------------------------------------------------------


def test_another_runs_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    finished(tmp_path, BestOfN(2))
    with pytest.raises(RunError) as caught:
        finished(tmp_path, BestOfN(4), seed=1)
    assert str(caught.value) == (
        f"{tmp_path} belongs to another run; these values differ:\n"
        "  strategy.n: 2 there, 4 here\n"
        "  seed: 0 there, 1 here\n"
        "Choose another output folder, or give that run's recipe to continue it."
    )


def test_rows_without_a_header_are_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "header.json").unlink()
    with pytest.raises(RunError, match=r"no header\.json that says which"):
        finished(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1}', "\x00"])
def test_a_damaged_header_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "header.json").write_text(content)
    with pytest.raises(RunError, match=r"header\.json must be a run's header"):
        finished(tmp_path)


def test_a_newer_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "header.json").write_text('{"schema_version": 99, "about": {}}')
    with pytest.raises(RunError, match="has log version 99"):
        finished(tmp_path)


def test_a_damaged_part_is_named_to_a_reader(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(PROMPTS, DyingGenerator(1), FakeVerifier(), SEARCHES[3], folder=tmp_path)
    (part,) = (tmp_path / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(RunError, match=rf"{part.name} is damaged \(its SHA-256 is not the one"):
        read_trials(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match=r"file/run must be a folder, and it or what is above"):
        finished(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written: Permission denied"):
        finished(tmp_path / "run")


def test_a_changed_or_missing_image_is_noticed(tmp_path: Path) -> None:
    finished(tmp_path)
    first, second = read_trials(tmp_path)[:2]
    (tmp_path / first.image.path).write_bytes(b"other")
    (tmp_path / second.image.path).unlink()
    with pytest.raises(RunError, match="was changed since the log was written"):
        first.image.load()
    with pytest.raises(RunError, match="cannot be read: No such file"):
        second.image.load()


@pytest.mark.parametrize("damage", ["other", "missing"])
def test_a_changed_or_missing_mask_is_noticed(tmp_path: Path, damage: str) -> None:
    table = finished(tmp_path)
    path = tmp_path / table.mask_path.dropna().iloc[0]
    path.unlink()
    if damage == "other":
        Image.new("1", (4, 4)).save(path)
    message = "was changed" if damage == "other" else "cannot be read"
    with pytest.raises(RunError, match=message):
        read_trials(tmp_path)


@pytest.mark.parametrize("read", [read_trials, read_outlines])
@pytest.mark.parametrize(
    "change",
    [
        {"proposal": "{}"},
        {"proposal": "5"},
        {"proposal": '{"kind": "draw", "noise": 5}'},
        {"round": None},
        {"verify_seconds": None},
        {"progress": math.inf},
    ],
    ids=str,
)
def test_a_row_that_is_no_trial_is_noticed(
    tmp_path: Path, read: Callable[[Path], object], change: dict[str, object]
) -> None:
    finished(tmp_path)
    forge(tmp_path, lambda row: row.update(change))
    with pytest.raises(RunError, match="holds a row that is not a trial"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["seed", "objective", "chosen", "judge_passed", "generator_steps", "heatmap_artifact_path"],
)
def test_a_score_cannot_have_a_columns_name(tmp_path: Path, name: str) -> None:
    verifier = FakeVerifier(lambda image, prompt: {name: 0.5})
    judge = FakeVerifier(lambda image, prompt: {"passed": 1.0})
    with pytest.raises(InputError, match=f"A score cannot be called {name}"):
        run(["a"], FakeGenerator(), verifier, BestOfN(1), folder=tmp_path, judge=judge)


def test_a_judges_score_cannot_either(tmp_path: Path) -> None:
    judge = FakeVerifier(lambda image, prompt: {"overall": 1.0})
    verifier = FakeVerifier(lambda image, prompt: {"judge_overall": 1.0})
    with pytest.raises(InputError, match="A score cannot be called judge_overall"):
        run(["a"], FakeGenerator(), verifier, BestOfN(1), folder=tmp_path, judge=judge)


# -- round trips ---------------------------------------------------------------------------

UNIT = st.floats(0, 1)
SEEDS = st.integers(0, 2**63 - 1)
IDS = st.text("0123456789abcdef", min_size=1, max_size=16)
MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2)).map(Mask.of)
NOISES = st.one_of(
    st.none(),
    st.builds(Near, IDS, UNIT),
    st.builds(LowBand, st.lists(st.floats(allow_nan=False), max_size=9).map(tuple), SEEDS),
)
PROPOSALS = st.one_of(
    st.builds(Draw, SEEDS, UNIT, NOISES),
    st.builds(Continue, IDS, UNIT, SEEDS, UNIT, UNIT),
    st.builds(Repaint, IDS, MASKS, SEEDS, UNIT),
    st.builds(Look, IDS),
)
NUMBERS = st.one_of(UNIT, st.just(math.nan))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
COUNTS = st.integers(0, 10**6)
COSTS = st.builds(Cost, COUNTS, COUNTS, COUNTS, UNIT, UNIT)


@st.composite
def verdicts(draw: st.DrawFn, size: tuple[int, int]) -> Verdict:
    grid = np.full(draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), 51 / 255, np.float32)
    heatmap = Heatmap(grid, size, draw(st.tuples(UNIT, UNIT, UNIT, UNIT)))
    return Verdict(
        scores={"a": draw(NUMBERS), "b c": draw(NUMBERS)},
        heatmaps=Heatmaps({"artifact": heatmap} if draw(st.booleans()) else {}),
        boxes=tuple(draw(st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), max_size=3))),
        text=draw(TEXTS),
        detail=draw(st.sampled_from(["score", "diagnose"])),
    )


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    latents = {"z": np.full((2, 3), draw(st.floats(width=32, allow_nan=False)), np.float32)}
    return Trial(
        id=draw(IDS),
        prompt=Prompt(draw(TEXTS), draw(TEXTS), draw(TEXTS)),
        round=draw(COUNTS),
        proposal=draw(PROPOSALS),
        progress=draw(UNIT),
        verdict=draw(st.one_of(st.none(), verdicts(size))),
        objective=draw(NUMBERS),
        cost=draw(COSTS),
        image=InMemory(Image.new("RGB", size, (9, 8, 7))),
        size=size,
        state=InMemory(latents) if draw(st.booleans()) else None,
        judge={"passed": draw(UNIT)} if draw(st.booleans()) else {},
        error=draw(TEXTS),
    )


@settings(max_examples=15)
@given(st.lists(trials(), min_size=1, max_size=4, unique_by=lambda t: t.id), st.integers(1, 3))
def test_any_trial_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, items: list[Trial], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    log = open_log(folder, {"x": 1}, {"steps": 3, "guidance": 1.5, "model": "m", "revision": None})
    for part in (items[:cut], items[cut:]):
        if part:
            log.append(part)
    log.flush()
    back = read_trials(folder)
    assert [values(t) for t in back] == [values(t) for t in items]
    assert [t.cost for t in back] == [t.cost for t in items]
    for mine, theirs in zip(items, back, strict=True):
        assert (mine.state is None) == (theirs.state is None)
        if mine.state and theirs.state:
            assert theirs.state.load()["z"].tolist() == mine.state.load()["z"].tolist()
    log.finish({items[0].id})
    log.close()
    assert [values(t) for t in read_trials(folder)] == [values(t) for t in items]


@given(PROPOSALS)
def test_any_proposal_survives_as_json(proposal: Proposal) -> None:
    mask = proposal.mask if isinstance(proposal, Repaint) else None
    text = proposal_to_json(proposal)
    assert proposal_from_json(text, lambda digest: mask) == proposal
    assert json.loads(text)["kind"] == type(proposal).__name__.lower()


# -- ids -----------------------------------------------------------------------------------


def test_an_id_is_of_prompt_proposal_and_settings() -> None:
    settings = {"steps": 20, "model": "m"}
    first = trial_id("a", Draw(1), settings)
    assert first == "e736d52f07199b78"
    assert first == trial_id("a", Draw(1), {"model": "m", "steps": 20}), "order is nothing"
    others = [
        trial_id("b", Draw(1), settings),
        trial_id("a", Draw(2), settings),
        trial_id("a", Draw(1, until=0.5), settings),
        trial_id("a", Look(first), settings),
        trial_id("a", Draw(1), {**settings, "steps": 21}),
        trial_id("a", Draw(1, noise=Near(first, 0.1)), settings),
        trial_id("a", Repaint(first, Mask.of(np.ones((2, 2), np.bool_)), 1), settings),
        trial_id("a", Repaint(first, Mask.of(np.zeros((2, 2), np.bool_)), 1), settings),
        trial_id("a", Repaint(first, Mask.of(np.zeros((1, 4), np.bool_)), 1), settings),
    ]
    assert len({first, *others}) == 1 + len(others)
