"""The campaign of `serve.py hostile`: a server process, and what comes back from it."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
from serve_requests import KINDS, POOL, UNREAD, caption_pictures

from tts_verifier.verifiers.load import load_verifier
from tts_verifier.verifiers.remote.protocol import unpack_message


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Returns the median, the 99th percentile and the largest."""
    median, late = np.percentile(seconds, [50, 99])
    return {"p50": float(median), "p99": float(late), "largest": float(max(seconds))}


def fill_pool(verifier: str) -> None:
    """Judges pictures in this process."""
    images, captions = caption_pictures(64)
    verdicts = load_verifier(verifier, device="cpu").verify(images, captions)
    scores = [dict(verdict.scores) for verdict in verdicts]
    POOL.extend(zip(images, captions, scores, strict=True))


def same_scores(found: list[dict[str, float]], expected: list[dict[str, float]]) -> bool:
    """Says whether scores are those of the same pictures, but for rounding in another batch."""
    return len(found) == len(expected) and all(
        a.keys() == b.keys()
        # None is NaN.
        and all((a[k] is None) == (b[k] != b[k]) for k in a)
        and all(a[k] is None or abs(a[k] - b[k]) < 1e-3 for k in a)
        for a, b in zip(found, expected, strict=True)
    )


def hostile(options: argparse.Namespace) -> dict[str, Any]:
    """Sends a server process what it must survive."""
    if options.verifier != "fake":
        fill_pool(options.verifier)
    command = "from tts_verifier.cli.serve import serve_command; serve_command()"
    limits = ["--max-body", "1", "--max-memory", "64", "--max-pixels", "65536", "--max-images", "8"]
    limits += ["--body-seconds", "3", "--idle-seconds", "6"]
    process = subprocess.Popen(
        [sys.executable, "-c", command, "--verifier", options.verifier, "--port", "0", *limits],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    lines = iter(process.stderr)
    port = next(int(m.group(1)) for line in lines if (m := re.search(r"127.0.0.1:(\d+)", line)))
    logged: list[str] = []
    reading = threading.Thread(target=lambda: logged.extend(lines))
    reading.start()
    began = time.perf_counter()
    try:
        found = asyncio.run(campaign(port, options))
        seconds = time.perf_counter() - began
        lives = process.poll() is None
    finally:
        process.terminate()
        status = process.wait(60)
        reading.join()
    tracebacks = sum(line.startswith("Traceback") for line in logged)
    return {
        "verifier": options.verifier,
        "requests": sum(found["kinds"].values()),
        "seconds": seconds,
        "stops": int(not lives),
        "exit_status": status,
        "tracebacks_in_its_log": tracebacks,
        **found,
    }


async def campaign(port: int, options: argparse.Namespace) -> dict[str, Any]:
    """Sends requests of all kinds, some at a time; returns what came back."""
    kinds, statuses, wrong, waits = Counter[str](), Counter[str](), 0, list[float]()
    rng, end = random.Random(0), time.perf_counter() + options.seconds
    names = list(KINDS)

    async def worker() -> None:
        nonlocal wrong
        while sum(kinds.values()) < options.requests and time.perf_counter() < end:
            name = "good" if rng.random() < 0.3 else rng.choice(names)
            kinds[name] += 1
            data, expected = KINDS[name](rng)
            began = time.perf_counter()
            try:
                status, body = await asyncio.wait_for(exchange(port, name, data), 30)
            except (OSError, TimeoutError) as error:
                statuses[f"{name}: {type(error).__name__}"] += 1
                continue
            statuses[f"{name}: {status}"] += 1
            if name == "good" and status == "200":
                waits.append(time.perf_counter() - began)
            if expected is not None and status == "200":
                message, _ = unpack_message(body)
                wrong += not same_scores([r["scores"] for r in message["results"]], expected)

    await asyncio.gather(*(worker() for _ in range(options.workers)))
    good = sum(count for name, count in statuses.items() if name == "good: 200")
    return {
        "good": kinds["good"],
        "good_answered": good,
        "good_wait_s": percentiles(waits),
        "answers_of_another_picture": wrong,
        "kinds": dict(sorted(kinds.items())),
        "statuses": dict(sorted(statuses.items())),
    }


async def exchange(port: int, name: str, data: bytes) -> tuple[str, bytes]:
    """Sends bytes on a connection of their own; returns the status, or why there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data[: len(data) // 2] if name.startswith("slow") else data)
        await writer.drain()
        if name == "gone":
            return "left", b""
        if name == "unread":
            await reader.readexactly(1000)
            await asyncio.sleep(14)
            whole = (await reader.read()).count(b'"missing"') >= UNREAD - 1
            return ("200" if whole else "closed"), b""
        answer = await reader.read()
    except ConnectionError:
        return "closed", b""
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (head.split(b" ")[1].decode() if head else "closed"), body
