"""What `parallel` may say in a recipe, and what a machine must have for it."""

import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
from worker_parts import traced_recipe

from tts_verifier.errors import InputError, RecipeError, RunError
from tts_verifier.parallel import hand_out, open_engine, run_parallel
from tts_verifier.parallel.engines.processes import (
    check_answers,
    check_speaks_dask,
    check_speaks_grpc,
    gpus_here,
    worker_count,
)
from tts_verifier.recipe import load_recipe, parallel_options
from tts_verifier.recipe.parallel_options import ParallelOptions, overrides_of

LIBRARIES = {"loky": "joblib", "ray": "ray", "dask": "distributed"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parallel.engine=spark", "Unknown engine 'spark'. Available: dask, loky, ray"),
        ("parallel.engine=rai", "Unknown engine 'rai'. Did you mean 'ray'"),
        ("parallel.workers=0", "workers must be a whole number, 1 or more, got 0"),
        ("parallel.workers=two", "parallel.workers must be a whole number"),
        ("parallel.gpus=-1", "gpus must be a whole number, 0 or more, got -1"),
        ("parallel.gpus=true", "parallel.gpus must be"),
        ("parallel.shard=0", "shard must be a whole number, 1 or more, got 0"),
        ("parallel.timeout=0", "timeout must be a whole number, 1 or more, got 0"),
        ("parallel.timeout=9999999999999", "timeout must be at most [0-9]* seconds, got 9999"),
        ("parallel.threads=2", "unknown key 'parallel.threads'"),
        ("parallel.address=10.0.0.1:6379", "loky works on this machine alone"),
        ("parallel=loky", "parallel must be a table of keys, got 'loky'"),
        ("parallel={3: 4}", "unknown key 'parallel.3'. Available: address, engine"),
        ("strategy={name: best_of_n, null: 4}", "unknown key 'strategy.None'"),
    ],
)
def test_a_mistake_in_parallel_names_its_line(override, message):
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe("fake", [override])
    assert str(error.value).startswith("override ")


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "tcp://10.0.0.1:port", ":8786", "", "h:99999", "h:0", "http://h:1", "ray://h:1"],
)
def test_an_address_needs_host_and_port(address):
    with pytest.raises(InputError, match=r"address must be HOST:PORT, such as"):
        ParallelOptions("ray", address=address)
    with pytest.raises(InputError, match=r"address must be tcp://HOST:PORT, such as"):
        ParallelOptions("dask", address=address)


def test_ray_takes_an_address_without_a_scheme():
    for address in ("tls://[::1]:8786", "ucxx://10.0.0.1:8786"):
        assert ParallelOptions("dask", address=address).address == address
    with pytest.raises(InputError, match=r"must be HOST:PORT, such as 10.0.0.1:6379, got 'tcp:"):
        ParallelOptions("ray", address="tcp://10.0.0.1:6379")


def test_a_slip_does_not_start_a_million_processes():
    with pytest.raises(InputError, match=r"at most 64, 32 for each core that .* got 1000000"):
        worker_count(ParallelOptions(workers=10**6), 0, "this machine has", cpus=2)
    for engine in (name for name, module in LIBRARIES.items() if find_spec(module)):
        with pytest.raises(InputError, match=r"32 for each core that this machine has, got 10000"):
            open_engine(ParallelOptions(engine, workers=10**6, gpus=0), print).__enter__()


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(parallel_options.ENGINES, "ray", "no_such_library:RayEngine")
    recipe = traced_recipe(tmp_path, "parallel.engine=ray")
    with pytest.raises(RunError, match=r'pip install "tts-verifier\[ray\]"'):
        run_parallel(recipe, say=lambda text: None)


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5,-1")
    assert gpus_here() == ["2", "5"]
    with (
        pytest.raises(InputError, match=r"need 4 GPUs, and this machine has 2. Give .*workers=1"),
        open_engine(ParallelOptions(workers=2, gpus=2), print),
    ):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match=r"has 0. Give parallel.gpus=0 to compute on"):
        worker_count(ParallelOptions(workers=2, gpus=1), len(gpus_here()), "this machine has")


@pytest.mark.parametrize(
    ("options", "gpus", "expected"),
    [
        (ParallelOptions(), 8, (8, 1)),
        (ParallelOptions(gpus=2), 8, (4, 2)),
        (ParallelOptions(workers=3), 8, (3, 1)),
        (ParallelOptions(workers=3), 0, (3, 0)),
        (ParallelOptions(workers=3, gpus=0), 8, (3, 0)),
    ],
)
def test_workers_share_the_gpus(options, gpus, expected):
    assert worker_count(options, gpus, "") == expected


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("ray", ("parallel.engine=ray",)),
        ("4", ("parallel.workers=4",)),
        ("-1", ("parallel.workers=-1",)),
        ("1.5", ("parallel.workers=1.5",)),
        ("parallel.workers=4", ("parallel.engine=loky", "parallel.workers=4")),
    ],
)
def test_the_option_is_an_engine_a_number_or_the_next_override(option, expected):
    assert overrides_of(option) == expected


def test_items_are_taken_only_as_workers_become_free(inline):
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    with open_engine(ParallelOptions(), abs) as engine:
        for done, (item, result) in enumerate(hand_out(engine, items())):
            assert item == result
            assert len(taken) <= done + engine.most
    assert taken == list(range(10))


def test_an_address_that_nobody_answers():
    with pytest.raises(RunError, match=r"Nobody answers at .*127.0.0.1:1 .*ray must run there"):
        check_answers("127.0.0.1:1", "ray", "Start it.")


GRPC = b"\0\0\6\4" + b"\0" * 11
DASK = b":\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0*\0\0\0\0\0\0\0\x83\xabcompression\xc0\xa6python"


@pytest.mark.parametrize(
    ("check", "answer", "fits"),
    [
        *((check_speaks_grpc, answer, answer is GRPC) for answer in (GRPC, b"220 mail\r\n", b"")),
        *((check_speaks_dask, answer, answer is DASK) for answer in (DASK, b"220 mail\r\n", b"")),
    ],
)
def test_an_address_where_something_else_answers(check, answer, fits):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                if check is check_speaks_grpc:
                    connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        error = pytest.raises(RunError, match=r"Something else than ray answers at .*Start it.")
        with nullcontext() if fits else error:
            check(f"127.0.0.1:{server.getsockname()[1]}", "ray", "Start it.")
        thread.join()


def test_no_engine_is_imported_without_parallel(tmp_path):
    code = f"""
import sys
from tts_verifier.cli.run import run_command
try:
    run_command(["fake", "--output", {str(tmp_path / "run")!r}, "--quiet"])
except SystemExit as end:
    assert not end.code
names = ("ray", "dask", "distributed", "joblib", "tts_verifier.parallel")
print([name for name in sys.modules if name.startswith(names)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
