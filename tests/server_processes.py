"""The processes of a server that a command starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

SECONDS = 60


@contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A server in processes of its own, its URL, and the id of the process that speaks HTTP."""
    started = subprocess.Popen(
        [sys.executable, *command],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert started.stderr is not None
    try:
        http = int(next(read_until(started, r"Started server process \[(\d+)\]")))
        yield started, next(read_until(started, r"running on (http://\S+)")), http
    finally:
        started.kill()
        started.wait(SECONDS)
        started.stderr.close()


def read_until(started: subprocess.Popen[str], pattern: str) -> Iterator[str]:
    assert started.stderr is not None
    for line in started.stderr:
        if found := re.search(pattern, line):
            yield found.group(found.re.groups)
    raise AssertionError("the server has ended")


def rest_of(started: subprocess.Popen[str]) -> str:
    """What is logged until both processes have ended, which share the pipe."""
    assert started.stderr is not None
    return started.stderr.read()


def waiting(url: str) -> bool:
    """Whether at least two pictures wait or are in the verifier."""
    return bool(httpx.get(f"{url}/health").json()["waiting"] >= 2)
