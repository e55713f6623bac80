"""The command: a process that answers what it has accepted before it ends."""

from __future__ import annotations

import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from server_processes import SECONDS, process, read_until, rest_of, waiting
from tiny_imagedoctor import noise

from tts_verifier.cli.serve import serve_command
from tts_verifier.errors import InputError, RunError, RunWarning
from tts_verifier.serve import server
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.serve.server import serve
from tts_verifier.testing import FakeVerifier
from tts_verifier.verifiers.remote import Remote

PROGRAM = """
import sys, time
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.serve.server import serve
from tts_verifier.testing import FakeVerifier

class Slow(FakeVerifier):
    def verify(self, images, prompts, *, detail="diagnose"):
        print("entered", sys.getswitchinterval(), file=sys.stderr, flush=True)
        time.sleep(0.5)
        return super().verify(images, prompts, detail=detail)

serve(Slow(), host="127.0.0.1", port=0, limits=RequestLimits())
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_when_what_it_accepted_is_answered(number: int) -> None:
    image = noise(8, 8)
    with process("-c", PROGRAM) as (started, url, _), ThreadPoolExecutor(2) as threads:
        remotes = [Remote(url, patience=0) for _ in range(2)]
        first = threads.submit(remotes[0].verify, [image], ["x"])
        interval = float(next(read_until(started, r"entered (\S+)")))
        assert interval < sys.getswitchinterval(), "threads take turns more often"
        second = threads.submit(remotes[1].verify, [image], ["y"])
        while started.poll() is None and not waiting(url):
            pass
        started.send_signal(number)
        expected = FakeVerifier().verify([image], ["x"])[0].scores
        assert [f.result(SECONDS)[0].scores for f in (first, second)] == [expected] * 2
        assert started.wait(SECONDS) == 0


@pytest.mark.slow
def test_a_second_interrupt_ends_both_processes_though_the_verifier_does_not_return() -> None:
    program = PROGRAM.replace("time.sleep(0.5)", "time.sleep(1000)")
    with process("-c", program) as (started, url, _), ThreadPoolExecutor(1) as threads:
        asked = threads.submit(Remote(url, patience=0).verify, [noise(8, 8)], ["x"])
        next(read_until(started, "(entered)"))
        started.send_signal(signal.SIGINT)
        next(read_until(started, "(Waiting for connections)"))
        started.send_signal(signal.SIGINT)
        assert "Traceback" not in rest_of(started)
        assert started.wait(SECONDS) == 1
        assert asked.exception(SECONDS) is not None


def test_where_the_http_process_dies_the_command_ends_though_the_verifier_does_not_return() -> None:
    program = PROGRAM.replace("time.sleep(0.5)", "time.sleep(1000)").rpartition("serve(")[0]
    program += """
from tts_verifier.cli.serve import serve_command
from tts_verifier.verifiers import load
load.load_verifier = lambda name, options: Slow()
serve_command(["--port", "0"])
"""
    with process("-c", program) as (started, url, http), ThreadPoolExecutor(1) as threads:
        asked = threads.submit(Remote(url, patience=0).verify, [noise(8, 8)], ["x"])
        next(read_until(started, "(entered)"))
        os.kill(http, signal.SIGKILL)
        assert rest_of(started).startswith(
            "Error: The HTTP process must live as long as the server; it has ended by signal 9."
        )
        assert started.wait(SECONDS) == 2
        assert asked.exception(SECONDS) is not None


def test_where_the_verifiers_process_dies_the_http_process_ends_and_leaves_the_port(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "end")
    # A worker that outlives its verifier, though not for ever if this test fails.
    fork = f"""import os, signal
        if os.fork() == 0:
            signal.alarm({SECONDS})
            os.close(2)
            open({str(tmp_path / "end")!r}).read()
            os._exit(0)
        print("entered","""
    program = PROGRAM.replace('print("entered",', fork)
    with process("-c", program) as (started, url, _), ThreadPoolExecutor(1) as threads:
        asked = threads.submit(Remote(url, patience=0).verify, [noise(8, 8)], ["x"])
        next(read_until(started, "(entered)"))
        started.kill()
        assert rest_of(started) == ""
        assert asked.exception(SECONDS) is not None
        with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
            pass
    # An error if the worker has ended.
    os.close(os.open(tmp_path / "end", os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.slow
def test_the_http_process_leaves_signals_to_the_verifiers_process() -> None:
    with process("-c", PROGRAM) as (_, url, http):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(http, number)
        assert Remote(url, patience=0).verify([noise(8, 8)], ["x"])
        # A server that is ending takes no more connections by now.
        assert Remote(url, patience=0).settings


@pytest.mark.parametrize("limit", [{"images": 0}, {"body": 1.5}, {"queue": True}])
def test_limits_are_whole_numbers(limit: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be above 0 and a whole number, got"):
        RequestLimits(**limit)


def test_the_command_serves_the_named_verifier() -> None:
    command = "from tts_verifier.cli.serve import serve_command as s; s()"
    arguments = ("--verifier", "fake", "--port", "0", "--max-images", "7")
    with process("-c", command, *arguments) as (_, url, _):
        assert Remote(url).settings == {"model": "fake"}
        assert Remote(url).verify([noise(8, 8)], ["x"])


def test_a_port_in_use_is_said() -> None:
    before = sys.getswitchinterval()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(serve_command, ["--verifier", "fake", "--port", str(port)])
    assert done.exit_code == 2
    assert f"must be able to listen on 127.0.0.1:{port}" in done.output
    assert sys.getswitchinterval() == before


def test_a_server_for_everybody_is_said() -> None:
    with pytest.raises(RunWarning, match=r"Everybody who reaches 0\.0\.0\.0:0 may use this server"):
        serve(FakeVerifier(), host="0.0.0.0", port=0, limits=RequestLimits())


def test_on_windows_one_process_serves() -> None:
    one = "from tts_verifier.serve import server; server.SEVERAL_PROCESSES = False\n"
    program = PROGRAM.replace("class Slow", one + "class Slow")
    with process("-c", program) as (started, url, http):
        assert http == started.pid
        assert Remote(url, patience=0).verify([noise(8, 8)], ["x"])
        started.send_signal(signal.SIGINT)
        assert started.wait(SECONDS) == 0


def test_on_windows_a_port_in_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEVERAL_PROCESSES", False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=rf"must be able to listen on 127\.0\.0\.1:{port}"):
            serve(FakeVerifier(), host="127.0.0.1", port=port, limits=RequestLimits())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verifier", "fake", "--set", "x"], "--set must be KEY=VALUE"),
        (["--verifier", "fake", "--set", "=3"], "--set must be KEY=VALUE"),
        (["--verifier", "fake", "--set", "a={"], "--set must be KEY=VALUE"),
        (["--verifier", "fake", "--set", "a=1", "--set", "a=2"], "--set gives a twice"),
        (
            ["--verifier", "fake", "--idle-seconds", "nan"],
            "idle_seconds must be above 0",
        ),
        (
            ["--verifier", "fake", "--idle-seconds", "inf"],
            "idle_seconds must be above 0",
        ),
        (["--verifier", "shapes", "--set", "colour=red"], "Unknown options colour"),
        (["--verifier", "shapes", "--set", "fit=round"], "fit must be one of"),
        (["--verifier", "nothing/there/at/all"], "nothing/there/at/all"),
    ],
)
def test_options_that_cannot_be_used(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(serve_command, arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_a_token_that_no_header_holds_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TTS_SERVE_TOKEN", "sec ret")
    done = CliRunner().invoke(serve_command, ["--verifier", "nothing/there/at/all"])
    assert done.exit_code == 2
    assert "printable ASCII without spaces" in done.output


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(serve_command, ["--verifier", "fake"])
    assert done.exit_code == 2
    assert 'pip install "tts-verifier[serve]"' in done.output
