"""A few cases of every campaign of faults; `examples/benchmarks/faults` runs them by thousands."""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from faults import (
    damages,
    decoy,
    folders,
    harness,
    images,
    prompts,
    recipes,
    replies,
    runs,
    threads,
)

from tts_verifier.errors import RunError, RunWarning, TTSError
from tts_verifier.log.storage.codecs import STATE
from tts_verifier.types import InFile

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


def assert_clean(campaign: ModuleType, cases: Iterable[int], home: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        tally = harness.run_here(campaign, cases, home)
    assert tally.clean, tally.bad
    assert tally.items >= tally.cases > 0


# -- the campaigns --------------------------------------------------------------------------------


def test_replies_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert_clean(replies, range(3_000), tmp_path)


@pytest.mark.slow
def test_recipes_are_read_as_stated_or_refused_with_a_place(tmp_path: Path) -> None:
    assert_clean(recipes, range(150), tmp_path)


@pytest.mark.slow
def test_every_picture_file_has_its_row(tmp_path: Path) -> None:
    assert_clean(images, range(8), tmp_path)


@pytest.mark.parametrize("name", sorted(damages.DAMAGES))
def test_a_damaged_folder_harms_nobody(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damages, "DAMAGES", {name: damages.DAMAGES[name]})
    # Prepared once: runs take most of the time.
    monkeypatch.delattr(folders, "prepare")
    assert_clean(folders, range(2), home)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("folders")
    folders.prepare(home)
    return home


def test_files_of_prompts_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert_clean(prompts, range(250), tmp_path)


def test_damaged_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    assert_clean(import_module("faults.configs"), range(300), tmp_path)


@pytest.mark.parametrize("name", threads.LIGHT)
def test_eight_threads_get_what_one_gets(name: str, tmp_path: Path) -> None:
    shared = threads.OBJECTS[name](tmp_path)
    results = threads.stress(name, shared, threads=8, calls=5)
    assert [r for r in results if r.outcome != "right"] == []


@pytest.mark.slow
def test_kills_of_every_command_lose_nothing(tmp_path: Path) -> None:
    # In a process of its own, which forks and has no threads of other tests.
    report = by_command("kills", "--cases", "14", "--workers", "1", home=tmp_path)
    assert report["right"] == report["cases"] == 14
    assert report["items"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cases"),
    [("replies", 50_000), ("recipes", 2_000), ("images", 120), ("folders", 300), ("kills", 130),
     ("configs", 1_500), ("prompts", 3_000), ("threads", threads.DEFAULT_CASES)],
)  # fmt: skip
def test_many_cases_of_another_seed(name: str, cases: int, tmp_path: Path) -> None:
    report = by_command(name, "--cases", str(cases), "--seed", "1", home=tmp_path)
    assert report["cases"] == cases


def by_command(*arguments: str, home: Path) -> dict[str, int]:
    command = [sys.executable, str(BENCHMARKS / "faults"), *arguments]
    # The code of this checkout, wherever an installed package points to.
    path = os.pathsep.join([str(BENCHMARKS.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TMPDIR": str(home), "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return report


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_a_state_never_runs(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.savez(content, latents=np.array([Touch(tmp_path / "ran")], dtype=object))
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    (tmp_path / "x.npz").write_bytes(content.getvalue())
    with pytest.raises((RunError, ValueError)):
        InFile(tmp_path, "x.npz", digest, STATE).load()
    assert not (tmp_path / "ran").exists()


# -- the instruments find faults ------------------------------------------------------------------


def fake_campaign(case: object, limit: float = 5.0) -> ModuleType:
    return SimpleNamespace(__name__="faults.fake", case=case, LIMIT=limit)  # type: ignore[return-value]


def outcomes(case: object, home: Path, cases: int = 1, **options: float) -> dict[str, int]:
    return dict(harness.run_here(fake_campaign(case, **options), range(cases), home).outcomes)


def test_cases_end_in_the_ways_that_are_listed(tmp_path: Path) -> None:
    def hang(*_: object) -> None:
        while True:
            pass

    def refuse(*_: object) -> None:
        raise TTSError("no")

    def crash(*_: object) -> None:
        raise KeyError("x")

    assert outcomes(hang, tmp_path, limit=0.05) == {"hung": 1}
    assert outcomes(refuse, tmp_path) == {"refused": 1}
    assert outcomes(crash, tmp_path) == {"uncaught": 1}
    assert outcomes(lambda *_: harness.expect(False, "x"), tmp_path) == {"wrong": 1}
    assert outcomes(lambda *_: harness.Result("a", "right"), tmp_path, 3) == {"right": 3}


def test_the_dice_of_a_case_derive_from_its_number(tmp_path: Path) -> None:
    def roll(number: int, dice: random.Random, home: Path) -> harness.Result:
        return harness.Result("a", "right", str(dice.random()))

    def details(cases: Iterable[int], seed: int) -> list[str]:
        tally = harness.run_here(fake_campaign(roll), cases, tmp_path, seed=seed)
        return [result.detail for _, result in tally.rows or []]

    assert details(range(3), 0)[2:] == details([2], 0)
    assert details(range(3), 0) != details(range(3), 1)


def test_a_decoy_tells_what_changed_and_is_put_back(tmp_path: Path) -> None:
    guarded = decoy.Decoy(tmp_path / "decoy")
    assert guarded.changed() == []
    (guarded.root / "letter.txt").write_text("mine now")
    (guarded.root / "states" / "x.npz").unlink()
    (guarded.root / "new").symlink_to("letter.txt")
    assert guarded.changed() == ["letter.txt", "new", "states", "states/x.npz"]
    assert guarded.changed() == []


def test_a_lost_or_altered_row_is_found(tmp_path: Path) -> None:
    recipe = runs.write_recipe(tmp_path / "r.yaml", "best_of_n")
    folder = runs.make_run(tmp_path / "run", recipe)
    whole = runs.rows_by_id(folder)
    runs.check_finished(folder, whole)
    name, row = next(iter(whole.items()))
    with pytest.raises(harness.WrongError, match="missing"):
        runs.check_finished(folder, {**whole, "other": row})
    with pytest.raises(harness.WrongError, match=r"differs in \['objective'\]"):
        runs.check_finished(folder, {**whole, name: {**row, "objective": 2.0}})
    (folder / row["image_path"]).write_bytes(b"torn")
    with pytest.raises(harness.WrongError, match="is not the file that its row names"):
        runs.check_finished(folder, whole)


def test_a_parser_that_guesses_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = replies.parse_reply

    def guess(text: str, **options: bool) -> object:
        parsed = real(text, **options)
        scores = {name: 0.0 if value != value else value for name, value in parsed.scores.items()}
        return parsed.__class__(scores, parsed.boxes, {n: (0, 0) for n in scores})

    monkeypatch.setattr(replies, "parse_reply", guess)
    tally = harness.run_here(replies, range(50), tmp_path)
    assert not tally.clean


def test_a_process_that_dies_costs_one_case(tmp_path: Path) -> None:
    # In a process of its own: `run_many` forks.
    code = f"""
import os, sys, types
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
from faults import harness, processes
def case(number, dice, home):
    if number in (3, 4):
        os._exit(9)
    return harness.Result("a", "right")
campaign = types.SimpleNamespace(__name__="x.y", case=case, LIMIT=5)
tally = processes.run_many(campaign, 20, Path({str(tmp_path)!r}))
print(tally.cases, dict(tally.outcomes))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("20 {'right': 18, 'died': 2}", "20 {'died': 2, 'right': 18}")


def test_memory_of_pictures_runs_out_before_the_machines_does(tmp_path: Path) -> None:
    def eat(*_: object) -> harness.Result:
        return harness.Result("a", "right", str(len(bytearray(8 * 2**30))))

    assert outcomes(eat, tmp_path) == {"uncaught": 1}
