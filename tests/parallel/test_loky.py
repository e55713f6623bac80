"""Real worker processes of this machine: killed, stopped and continued."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from worker_parts import choices, ignores_ctrl_c, traced, traced_recipe

from tts_verifier.errors import RunError
from tts_verifier.log import read_rows
from tts_verifier.parallel import hand_out, open_engine, run, run_parallel
from tts_verifier.parallel.engines import loky_engine
from tts_verifier.parallel.stalls import Stalls
from tts_verifier.recipe import run_recipe
from tts_verifier.recipe.parallel_options import ParallelOptions
from tts_verifier.runner.progress import ProgressLines, status_line

HELD = []
CODE = """
import sys
from pathlib import Path
from worker_parts import traced_recipe
from tts_verifier.parallel import run_parallel
folder, engine, seconds = sys.argv[1:]
options = (f"parallel.engine={engine}", "parallel.workers=2", "parallel.shard=5")
run_parallel(traced_recipe(Path(folder), *options, seconds=float(seconds)), say=lambda text: None)
"""


def start(folder, *overrides, **options):
    recipe = traced_recipe(folder, "parallel.workers=2", "parallel.shard=5", *overrides, **options)
    return run_parallel(recipe, say=lambda text: None)


def coordinator(folder, engine="loky", seconds=0.2):
    """Starts a run in a process of its own; returns it once a worker has drawn two batches."""
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder), engine, str(seconds)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(traced(folder, "drew")) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def same_as_one_process(folder):
    run_recipe(traced_recipe(folder), output=folder / "one", say=lambda text: None)
    return choices(folder / "run") == choices(folder / "one")


def test_a_worker_that_dies_is_replaced_and_its_shard_goes_on(tmp_path):
    start(tmp_path, dies_once=str(tmp_path / "died"))
    assert same_as_one_process(tmp_path)
    built = [process for process, *_ in traced(tmp_path, "built")]
    assert len(set(built)) == len(built) == 4, "two workers, another one, and this process"
    drawn = [trial for process, trial in traced(tmp_path, "drew") if process != str(os.getpid())]
    assert len(drawn) <= len(set(drawn)) + 4, "at most one batch was drawn again"


def test_a_worker_that_hangs_is_named_and_ended(tmp_path, monkeypatch):
    # A second lasts a thousand.
    monkeypatch.setattr(run, "Stalls", lambda: Stalls(lambda: 1000 * time.monotonic()))
    recipe = traced_recipe(
        tmp_path,
        *("parallel.workers=2", "parallel.shard=5", "parallel.timeout=2"),
        hangs_once=str(tmp_path / "hung"),
    )
    shown = io.StringIO()
    with ProgressLines(shown, status_line, seconds=0) as progress:
        run_parallel(recipe, say=lambda text: None, progress=progress)
    assert re.search(r"candidates, shard 0000[01]: nothing new for \d+ min", shown.getvalue())
    assert same_as_one_process(tmp_path)
    drawn = [trial for process, trial in traced(tmp_path, "drew") if process != str(os.getpid())]
    assert len(set(drawn)) < len(drawn) <= len(set(drawn)) + 4, "one batch was drawn again"


def test_a_worker_that_replaces_another_ignores_ctrl_c_from_its_first_moment(tmp_path):
    with open_engine(ParallelOptions(workers=1, gpus=0), ignores_ctrl_c) as engine:
        assert list(hand_out(engine, [tmp_path / "died"])) == [(tmp_path / "died", True)]


def grow(megabytes):
    """Keeps so much memory for good, and returns the process."""
    HELD.append(b"x" * (megabytes * 1_000_000))
    # loky looks at the memory once a second.
    time.sleep(1.1)
    return os.getpid()


@pytest.mark.slow
def test_a_worker_that_grows_keeps_what_it_has_loaded():
    options = ParallelOptions("loky", workers=1, gpus=0)
    with open_engine(options, grow) as engine:
        found = {process for size in (0, 400, 0) for _, process in hand_out(engine, [size])}
    assert len(found) == 1


def test_a_prompt_that_kills_its_worker_becomes_a_row_with_its_error(tmp_path):
    start(tmp_path, "prompts=[a, b, kill, d]", "parallel.shard=4", dies_on="kill", batch_size=8)
    errors = {(row["prompt"], row["error"]) for row in read_rows(tmp_path / "run")}
    assert {prompt for prompt, error in errors if error is None} == {"a", "b", "d"}
    ((text, why),) = [(prompt, error) for prompt, error in errors if error]
    assert text == "kill"
    assert why.startswith("3 workers died on this prompt")


def test_ctrl_c_stops_the_workers_after_their_batch(tmp_path):
    process = coordinator(tmp_path)
    # As a terminal does: every process of the group gets it.
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1].decode()
    assert "KeyboardInterrupt" in error
    assert "Another Ctrl-C ends them at once" in error
    assert len(choices(tmp_path / "run")) == len(traced(tmp_path, "drew")) < 40
    start(tmp_path, seconds=0.2)
    drawn = [trial for _, trial in traced(tmp_path, "drew")]
    assert len(drawn) == len(set(drawn)) == 40
    assert same_as_one_process(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loky", "ray", "dask"])
def test_a_second_ctrl_c_ends_the_workers_at_once(tmp_path, engine):
    pytest.importorskip({"loky": "joblib", "ray": "ray", "dask": "distributed"}[engine])
    process = coordinator(tmp_path, engine, seconds=20)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        # Python answers two signals as one where they come within an instant.
        time.sleep(1)
    assert "KeyboardInterrupt" in process.communicate(timeout=15)[1].decode()
    assert len(traced(tmp_path, "drew")) == 8
    assert not choices(tmp_path / "run"), "the batches under way were given up"
    assert not any(is_alive(int(pid)) for pid, *_ in traced(tmp_path, "built"))


@pytest.mark.slow
def test_workers_do_not_outlive_their_coordinator(tmp_path):
    process = coordinator(tmp_path)
    process.kill()
    assert process.communicate()[1] == b"", "nothing that a user could do something about"
    workers = {int(pid) for pid, *_ in traced(tmp_path, "built")}
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
    start(tmp_path, "parallel.workers=3", seconds=0.2)
    drawn = [trial for _, trial in traced(tmp_path, "drew")]
    assert len(drawn) <= len(set(drawn)) + 8, "at most a batch a worker was drawn again"
    assert same_as_one_process(tmp_path)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_work_that_ends_every_worker_is_named(monkeypatch):
    class DyingPool:
        def __init__(self, *arguments, **options):
            pass

        def submit(self, work, item):
            future = Future()
            future.set_exception(BrokenProcessPool("It was killed.\nDetails follow."))
            return future

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(loky_engine, "ProcessPoolExecutor", DyingPool)
    with (
        pytest.raises(
            RunError, match=r"25 workers .* same work \(77\), .*: It was killed. Mend th"
        ),
        open_engine(ParallelOptions(workers=1), print) as engine,
    ):
        list(hand_out(engine, [77]))
