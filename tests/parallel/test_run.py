"""A run in shards: the trials and choices of one process, continued, checked and read."""

import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from cases import mostly_slow
from html_pages import whole
from worker_parts import TracedGenerator, choices, traced, traced_recipe

from tts_verifier.analysis.replay import replay_log
from tts_verifier.analysis.report import write_report
from tts_verifier.errors import CheckpointError, InputError, RunError, RunWarning
from tts_verifier.log import (
    LoggedPrompts,
    is_running,
    read_header,
    read_outlines,
    read_rows,
    read_trials,
)
from tts_verifier.log.lock import FolderLock
from tts_verifier.parallel import run_parallel
from tts_verifier.parallel.warned import noted_warnings
from tts_verifier.recipe import load_recipe, run_recipe
from tts_verifier.types import Sample

SHARDS = ("parallel.workers=2", "parallel.shard=4")


def quiet(text):
    """Shows nothing."""


def start(folder, *overrides, **options):
    recipe = traced_recipe(folder, *SHARDS, *overrides, **options)
    return run_parallel(recipe, say=quiet)


def test_shards_have_the_trials_and_choices_of_one_process(tmp_path, inline):
    one = run_recipe(traced_recipe(tmp_path), output=tmp_path / "one", say=quiet)
    many = start(tmp_path)
    assert choices(tmp_path / "run") == choices(tmp_path / "one")
    assert str(many).replace("/run", "/one") == str(one)
    for outcome in (one, many):
        rows = json.loads(outcome.as_json())["prompts"].values()
        assert len(rows) == 10
        for row in rows:
            assert row["image"].endswith(f"images/{row['chosen']}.png")
            assert (outcome.folder / row["image"]).is_file()
    assert sorted(p.name for p in (tmp_path / "run/shards").iterdir()) == [
        "00000",
        "00001",
        "00002",
    ]
    for name in ("0000", "0009"):
        chosen = [(tmp_path / f"{run}/chosen/{name}.png").read_bytes() for run in ("run", "one")]
        assert len(set(chosen)) == 1


def test_readers_take_the_shards_as_one_log(tmp_path, inline):
    start(tmp_path)
    folder = tmp_path / "run"
    assert not is_running(folder)
    assert len(read_trials(folder)) == 40
    assert LoggedPrompts(folder).sizes == [4] * 10
    assert [trials[0].prompt.id for trials in LoggedPrompts(folder)] == [
        f"{i:04d}" for i in range(10)
    ]
    assert replay_log(folder).prompts == 10
    page = whole(write_report([folder], tmp_path / "report.html")[0])
    image = read_trials(folder)[-1].image
    assert f"run/shards/00002/{image.path}" in page
    inside = whole(write_report([folder], folder / "report.html")[0])
    assert f'"shards/00002/{image.path}"' in inside
    assert write_report([folder], tmp_path / "inline.html", inline=True)[0].stat().st_size > 10_000


def test_a_run_in_shards_is_verified_again_by_one_process_or_many(tmp_path, inline):
    start(tmp_path)
    again = load_recipe("fake")
    run_recipe(again, output=tmp_path / "one", rejudge=tmp_path / "run", say=quiet)
    assert choices(tmp_path / "one") == choices(tmp_path / "run")
    many, shown = load_recipe("fake", SHARDS), []
    run_parallel(many, output=tmp_path / "many", rejudge=tmp_path / "run", say=shown.append)
    assert "parallel:\n" in shown[0]
    assert "prompts:" not in shown[0], "those of the recipe are not used"
    assert choices(tmp_path / "many") == choices(tmp_path / "run")
    assert len(traced(tmp_path, "drew")) == 40


RANKED = [
    "objective.weights={semantic_alignment: 1, aesthetics: 2}",
    "objective.combine=mean_rank",
]
COMPARED = ["comparer.name=fake", "ties=3", "near=9.0"]
LOOKED = ["looks=2", "detail=score"]


@pytest.mark.parametrize(
    "kind",
    mostly_slow([RANKED, COMPARED, LOOKED, RANKED + COMPARED], quick=[LOOKED, RANKED + COMPARED]),
    ids=["ranks", "ties", "looks", "both"],
)
def test_choices_that_need_the_whole_prompt_are_those_of_one_process(tmp_path, inline, kind):
    folders = [tmp_path / name for name in ("one", "many", "one again", "many again")]
    outcomes = []
    for number, folder in enumerate(folders):
        recipe = load_recipe(
            "fake", ["prompts=[a, b, c, d, a]", *kind, *SHARDS[: 2 * (number % 2)]]
        )
        run = run_parallel if number % 2 else run_recipe
        rejudge = folders[1] if number > 1 else None
        outcomes.append(run(recipe, output=folder, rejudge=rejudge, subset=2, say=quiet))
    texts = {
        str(outcome).replace(str(folder), "")
        for outcome, folder in zip(outcomes, folders, strict=True)
    }
    assert len(texts) == 1
    pictures = [
        {path.name: path.read_bytes() for path in folder.glob("[cs]*/*.png")} for folder in folders
    ]
    assert len(pictures[0]) == 5 * 3
    assert pictures == [pictures[0]] * 4
    assert choices(folders[1]) == choices(folders[0])
    assert choices(folders[3]) == choices(folders[2])


def test_a_finished_run_starts_no_engine(tmp_path, inline):
    first = start(tmp_path)
    again = start(tmp_path)
    assert inline.opened == 1
    assert again.as_json() == first.as_json()


def test_a_larger_n_draws_what_is_missing(tmp_path, inline):
    start(tmp_path)
    start(tmp_path, "strategy.n=6")
    drawn = [trial for _, trial in traced(tmp_path, "drew")]
    assert len(drawn) == len(set(drawn)) == 60
    run_recipe(traced_recipe(tmp_path, "strategy.n=6"), output=tmp_path / "one", say=quiet)
    assert choices(tmp_path / "run") == choices(tmp_path / "one")


@pytest.mark.parametrize("lost", ["trials.parquet", "images/{}.png", "done.json"])
def test_what_a_finished_shard_has_lost_is_made_again(tmp_path, inline, lost):
    start(tmp_path)
    before = choices(tmp_path / "run")
    shard = tmp_path / "run/shards/00001"
    trial = next(iter(shard.glob("images/*.png"))).stem
    (shard / lost.format(trial)).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        start(tmp_path)
    assert choices(tmp_path / "run") == before
    redrawn = len(traced(tmp_path, "drew")) - 40
    assert redrawn == {"trials.parquet": 16, "images/{}.png": 1, "done.json": 0}[lost]


def test_a_changed_table_is_made_again(tmp_path, inline):
    start(tmp_path)
    before = choices(tmp_path / "run")
    table = tmp_path / "run/shards/00000/trials.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match=r"cannot be used"):
        start(tmp_path)
    assert choices(tmp_path / "run") == before


def test_a_finished_shard_of_another_run_is_refused(tmp_path, inline):
    start(tmp_path)
    other = tmp_path / "other"
    prompts = "prompts=[a, b, c, d]"
    run_parallel(traced_recipe(tmp_path, *SHARDS, prompts), output=other, say=quiet)
    shutil.rmtree(tmp_path / "run/shards/00000")
    shutil.copytree(other / "shards/00000", tmp_path / "run/shards/00000")
    with pytest.raises(RunError, match=r"belongs to another run(.|\n)*recipe.shard.run"):
        start(tmp_path)


def test_a_mark_that_names_no_trials_is_none(tmp_path, inline):
    first = start(tmp_path)
    mark = tmp_path / "run/shards/00001/done.json"
    done = json.loads(mark.read_text())
    done["prompts"][0]["chosen"] = ["a"]
    mark.write_text(json.dumps(done))
    assert start(tmp_path).as_json() == first.as_json()
    assert len(traced(tmp_path, "drew")) == 40


@pytest.mark.parametrize("what", ["another run's", "another place's", "a run without shards"])
def test_readers_refuse_a_shard_that_is_not_the_runs_own(tmp_path, inline, what):
    start(tmp_path)
    other, own = tmp_path / "other", tmp_path / "run/shards/00000"
    shutil.rmtree(own)
    if what == "a run without shards":
        run_recipe(traced_recipe(tmp_path), output=other, say=quiet)
        shutil.copytree(other, own)
    elif what == "another place's":
        shutil.copytree(tmp_path / "run/shards/00001", own)
    else:
        run_parallel(traced_recipe(tmp_path, *SHARDS), output=other, say=quiet)
        shutil.copytree(other / "shards/00000", own)
    page = tmp_path / "report.html"
    readers = [read_trials, read_rows, LoggedPrompts, is_running, read_outlines]
    readers += [lambda folder: write_report([folder], page), replay_log]
    for read in readers:
        with pytest.raises(RunError, match=r"00000 must be shard 00000 of run .*Put back"):
            read(tmp_path / "run")
    assert not page.exists()


@pytest.mark.parametrize(
    "counts",
    mostly_slow(
        [{}, {"best": None, "new": "many"}, {"best": [], "new": 1}],
        quick=[{"best": None, "new": "many"}, {"best": [], "new": 1}],
    ),
)
def test_a_mark_without_usable_counts_is_none(tmp_path, inline, counts):
    first = start(tmp_path)
    mark = tmp_path / "run/shards/00001/done.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"counts": counts}))
    assert start(tmp_path).as_json() == first.as_json()
    assert len(traced(tmp_path, "drew")) == 40


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_pipe_in_place_of_a_shards_table_is_never_opened(tmp_path, inline):
    start(tmp_path)
    before = choices(tmp_path / "run")
    table = tmp_path / "run/shards/00000/trials.parquet"
    table.unlink()
    os.mkfifo(table)
    with pytest.warns(RunWarning, match=r"cannot be used \(it is no plain file\)"):
        start(tmp_path)
    assert choices(tmp_path / "run") == before


def test_the_top_header_names_prompts_by_a_file_and_its_digest(tmp_path, inline):
    start(tmp_path)
    header = read_header(tmp_path / "run")
    about = header["about"]["prompts"]
    assert (about["file"], about["count"]) == ("prompts.jsonl", 10)
    assert header["shards"] == {"00000": 4, "00001": 4, "00002": 2}
    assert "prompt 3" not in json.dumps(header)
    lines = (tmp_path / "run/prompts.jsonl").read_text().splitlines()
    assert json.loads(lines[3]) == {"id": "0003", "prompt": "prompt 3", "category": "", "repeat": 0}
    with pytest.raises(RunError, match=r"whose prompts differ; the first in line 11 (.|\n)*no pro"):
        start(tmp_path, prompts=11)
    with pytest.raises(RunError, match=r"in line 1 .*\n.*prompt 0.* there, .*other.* here"):
        start(tmp_path, "prompts=[other]")
    (tmp_path / "run/prompts.jsonl").write_text("damaged")
    start(tmp_path)
    assert (tmp_path / "run/prompts.jsonl").read_text().splitlines() == lines
    assert header["sessions"][0]["engine"] == "loky"


def test_equal_texts_are_told_apart_across_shards(tmp_path, inline):
    start(tmp_path, "prompts=[a, a, a, b, a, b]", "parallel.shard=2")
    run_recipe(
        traced_recipe(tmp_path, "prompts=[a, a, a, b, a, b]"), output=tmp_path / "one", say=quiet
    )
    assert choices(tmp_path / "run") == choices(tmp_path / "one")
    assert len(choices(tmp_path / "run")) == 24


def test_few_prompts_are_spread_over_all_workers(tmp_path, inline):
    run_parallel(traced_recipe(tmp_path, "parallel.workers=2"), say=quiet)
    shards = read_header(tmp_path / "run")["shards"]
    assert shards == {"00000": 3, "00001": 3, "00002": 3, "00003": 1}


def test_shards_stay_as_the_first_start_made_them(tmp_path, inline):
    start(tmp_path)
    run_parallel(traced_recipe(tmp_path, "parallel.workers=3"), say=quiet)
    with pytest.raises(RunError, match=r"have 4 prompts, and shard is 5. Leave out shard"):
        start(tmp_path, "parallel.shard=5")


def test_a_changed_or_lost_header_is_named_and_nothing_is_overwritten(tmp_path, inline):
    start(tmp_path)
    path = tmp_path / "run/header.json"
    header = path.read_text()
    del (changed := json.loads(header))["shards"]["00002"]
    path.write_text(json.dumps(changed))
    with pytest.raises(RunError, match=r"must hold all 10 prompts, they hold 8: the file was ch"):
        start(tmp_path)
    path.unlink()
    with pytest.raises(RunError, match=r"the shards of a run but no header.json .* Put it back"):
        start(tmp_path)
    assert not path.exists()
    path.write_text(header)
    assert start(tmp_path).folder == tmp_path / "run"


def test_a_file_in_the_place_of_a_shard_is_named(tmp_path, inline):
    start(tmp_path)
    shutil.rmtree(tmp_path / "run/shards/00001")
    (tmp_path / "run/shards/00001").touch()
    with pytest.raises(RunError, match=r"00001 must be a folder, and it or what is above it is"):
        start(tmp_path)


def test_a_single_shard_does_not_become_smaller(tmp_path, inline):
    start(tmp_path, "parallel.shard=100")
    start(tmp_path, "parallel.shard=50")
    with pytest.raises(RunError, match=r"have 10 prompts, and shard is 3. Leave out shard"):
        start(tmp_path, "parallel.shard=3")


def test_one_folder_is_either_in_shards_or_not(tmp_path, inline):
    start(tmp_path)
    with pytest.raises(RunError, match=r"in shards, as --parallel makes it. Continue it with"):
        run_recipe(traced_recipe(tmp_path), say=quiet)
    run_recipe(traced_recipe(tmp_path), output=tmp_path / "one", say=quiet)
    with pytest.raises(RunError, match=r"of a single process. Continue it without parallel"):
        run_parallel(traced_recipe(tmp_path, *SHARDS), output=tmp_path / "one", say=quiet)


def test_a_second_coordinator_is_refused(tmp_path, inline):
    lock = FolderLock(tmp_path / "run")
    with pytest.raises(RunError, match=r"is in use: process .* is writing it"):
        start(tmp_path)
    lock.release()


def test_a_constructor_that_fails_ends_the_run_with_its_message(tmp_path, inline):
    with pytest.raises(CheckpointError, match=r"no weights here"):
        start(tmp_path, broken="no weights here")
    # Nothing was drawn, so the mended recipe may have the folder.
    start(tmp_path)
    assert len(choices(tmp_path / "run")) == 40


def test_one_process_does_not_take_a_recipe_for_many(tmp_path):
    with pytest.raises(InputError, match=r"tts_verifier.parallel.run_parallel"):
        run_recipe(traced_recipe(tmp_path, *SHARDS), say=quiet)


def test_the_shown_recipe_says_how_the_run_is_distributed(tmp_path, inline):
    shown = []
    run_parallel(traced_recipe(tmp_path, *SHARDS, prompts=2), say=shown.append)
    assert "parallel:\n  engine: loky\n  workers: 2" in shown[0]
    assert "prompt: prompt 1" in shown[0]


def test_a_relative_folder_is_the_same_one_for_workers(tmp_path, inline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = replace(traced_recipe(tmp_path, *SHARDS), output=Path("here"))
    assert run_parallel(recipe, say=quiet).folder == tmp_path / "here"


@pytest.mark.parametrize("run", [run_recipe, run_parallel])
def test_the_address_of_an_object_store_is_no_folder(tmp_path, inline, run):
    recipe = traced_recipe(tmp_path, *(SHARDS if run is run_parallel else ()))
    with pytest.raises(InputError, match=r"on a file system, got the address 's3://b"):
        run(recipe, output="s3://bucket/run", say=quiet)
    assert not traced(tmp_path, "drew")


class Failing(TracedGenerator):
    """Has one of two reasons for every candidate."""

    def generate(self, jobs):
        return [Sample(job, None, error=f"no {int(job.id, 16) % 3 > 0}") for job in jobs]


def test_a_run_whose_candidates_all_failed_names_the_most_frequent_reason(tmp_path, inline):
    recipe = traced_recipe(tmp_path, *SHARDS)
    generator = replace(recipe.sections["generator"], builder=Failing)
    recipe = replace(recipe, sections={**recipe.sections, "generator": generator})
    outcome = run_parallel(recipe, say=quiet)
    assert "none of 40 can: no True." in outcome.failure
    broken = {**recipe.sections, "generator": replace(generator, builder=Broken)}
    recipe = replace(recipe, sections=broken)
    with pytest.warns(RunWarning, match=r"A candidate failed") as warned:
        run_parallel(recipe, output=tmp_path / "broken", say=quiet)
    assert len(warned) == 1, "the three shards warn of the same"


def test_what_a_worker_warns_of_before_it_fails_is_not_lost():
    def fail():
        with noted_warnings():
            warnings.warn("why", RunWarning, stacklevel=1)
            raise RunError("it failed")

    with pytest.warns(RunWarning, match="why"), pytest.raises(RunError):
        fail()


class Broken(TracedGenerator):
    """Raises for every batch."""

    def generate(self, jobs):
        raise RuntimeError("no GPU")
