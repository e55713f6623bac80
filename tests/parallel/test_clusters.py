"""Ray and Dask, where they are installed: kills, clusters, tokens. Minutes, so marked slow."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from worker_parts import choices, ignores_ctrl_c, traced, traced_recipe

from tts_verifier.errors import RunError
from tts_verifier.parallel import hand_out, open_engine
from tts_verifier.recipe import run_recipe
from tts_verifier.recipe.parallel_options import ParallelOptions

pytestmark = pytest.mark.slow
TESTS = str(Path(__file__).parents[1])
CODE = """
import sys
from pathlib import Path
from worker_parts import traced_recipe
from tts_verifier.errors import TTSError
from tts_verifier.parallel import run_parallel
if __name__ == "__main__":
    folder, *overrides = sys.argv[1:]
    once = {f"{what}_once": str(Path(folder) / what) for what in ("dies", "hangs")}
    options = ("parallel.shard=3", "parallel.timeout=2")
    recipe = traced_recipe(Path(folder), *options, *overrides, **once)
    try:
        run_parallel(recipe, say=lambda text: None)
    except TTSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def run_in_process(folder, *overrides, **environment):
    """Runs in a process of its own; returns what it printed as an error."""
    script = folder / "script.py"
    script.write_text(CODE)
    paths = os.pathsep.join([TESTS, *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *overrides],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_workers_that_die_or_hang_are_replaced(tmp_path, engine):
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[engine])
    assert run_in_process(tmp_path, f"parallel.engine={engine}", "parallel.workers=2") == ""
    drawn = [trial for _, trial in traced(tmp_path, "drew")]
    assert len(drawn) <= len(set(drawn)) + 8, "at most one batch was drawn again for each"
    built = [process for process, *_ in traced(tmp_path, "built")]
    assert len(set(built)) == len(built) <= 4
    assert (tmp_path / "hangs").exists()
    run_recipe(traced_recipe(tmp_path), output=tmp_path / "one", say=lambda text: None)
    assert choices(tmp_path / "run") == choices(tmp_path / "one")


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_nobody_answers(tmp_path, engine):
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[engine])
    scheme = "tcp://" if engine == "dask" else ""
    error = run_in_process(
        tmp_path, f"parallel.engine={engine}", f"parallel.address={scheme}127.0.0.1:1"
    )
    assert f"RunError: Nobody answers at parallel.address {scheme}127.0.0.1:1" in error


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_more_gpus_than_there_are(tmp_path, engine):
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[engine])
    error = run_in_process(
        tmp_path, f"parallel.engine={engine}", "parallel.gpus=2", CUDA_VISIBLE_DEVICES="3"
    )
    assert "InputError" in error
    assert "GPU" in error


@pytest.mark.skipif(not find_spec("distributed"), reason="needs dask")
def test_a_dask_worker_that_replaces_another_ignores_ctrl_c_too(tmp_path):
    with open_engine(ParallelOptions("dask", workers=1, gpus=0), ignores_ctrl_c) as engine:
        assert list(hand_out(engine, [tmp_path / "died"])) == [(tmp_path / "died", True)]


@pytest.mark.skipif(not find_spec("distributed"), reason="needs dask")
def test_work_that_ends_every_dask_worker_is_named():
    options = ParallelOptions("dask", workers=1, gpus=0)
    with (
        pytest.raises(RunError, match=r"25 workers died on the same work \(9\), .*Mend the cause"),
        open_engine(options, os._exit) as engine,
    ):
        list(hand_out(engine, [9]))


@pytest.mark.skipif(not find_spec("distributed"), reason="needs dask")
def test_more_workers_than_a_dask_cluster_has(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        address = f"parallel.address={cluster.scheduler_address}"
        error = run_in_process(tmp_path, "parallel.engine=dask", address, "parallel.workers=2")
        assert "workers must be at most those of the Dask cluster, 1, got 2" in error
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        address = f"parallel.address={cluster.scheduler_address}"
        error = run_in_process(tmp_path, "parallel.engine=dask", address)
        assert "must have workers of one thread each" in error


@pytest.mark.skipif(not find_spec("ray"), reason="needs ray")
def test_ray_that_cannot_start_says_why(monkeypatch):
    # Ray notes the command that starts it, which must be valid Unicode.
    monkeypatch.setattr("ray.init", lambda **options: "\udcff".encode())
    cannot_start = pytest.raises(RunError, match=r"cannot start .*UnicodeEn.* or use engine: loky")
    with cannot_start, open_engine(ParallelOptions("ray", gpus=0), print):
        pass


@pytest.mark.skipif(not find_spec("ray"), reason="needs ray")
def test_a_ray_cluster_refuses_a_wrong_token(tmp_path):
    # Ray's sockets are below this folder, and the path of a socket has at most 107 bytes.
    token, port, short = "0123456789abcdef" * 4, 6411, tempfile.mkdtemp()
    # Its workers import the test's parts too.
    paths = os.pathsep.join([TESTS, *sys.path])
    head = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--port={port}", "--num-cpus=2", "--include-dashboard=false"),
            *("--disable-usage-stats", f"--temp-dir={short}"),
        ],
        env={
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "PYTHONPATH": paths,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        address = f"parallel.address=127.0.0.1:{port}"
        options = ["parallel.engine=ray", address, "parallel.workers=2"]
        error = run_in_process(tmp_path, *options, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64)
        assert "RunError: Ray refuses parallel.address" in error
        assert "set RAY_AUTH_MODE=token, and the same token" in error
        assert run_in_process(tmp_path, *options, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) == ""
        assert len(choices(tmp_path / "run")) == 40
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        time.sleep(2)
        head.kill()
        head.wait()
        head.stdout.close()
        shutil.rmtree(short, ignore_errors=True)
