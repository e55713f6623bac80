"""Measures `tts-serve` on loopback: its rate beside the same verifier in one process, and its calm.

    python examples/benchmarks/serve.py rate                        # the bundled verifier
    python examples/benchmarks/serve.py rate --random 3b --pictures 1024 --threads 2
    python examples/benchmarks/serve.py hostile --requests 100000
    python examples/benchmarks/serve.py hostile --requests 10000 --verifier shapes

`rate`: one call of `verify` with all pictures, then the same pictures by 16 client processes, whose
threads send 32 pictures a request; median of three runs each. Verdicts must be those of the call;
on a GPU rounding depends on the batch, so the share of equal replies is shown beside that of a
second call in another order, and that of small calls with some of the pictures. `one_by_one` is
what a picture waits when each client sends one at a time.

`hostile`: requests that are wrong, cut off, too large, slow, or pickles, mixed with good ones, each
of another picture, to a server process with the fake verifier, or with another one. It counts the
answers by kind, good answers that are not those of their picture, what good requests wait, and
whether the process still lives. An `unread` answer must be `closed`; where it is 200, the server
has kept it for 14 seconds. With a slow verifier, a client may not get one within 30 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from serve_hostile import hostile, percentiles
from serve_requests import caption_pictures

from tts_verifier.errors import RunWarning
from tts_verifier.types import Verdict
from tts_verifier.verifiers.remote import Remote

TOGETHER = 32
SMALL_CALLS = (1, 3, 7, 11, 19, 29) * 8
"""Pictures of each of the calls that show how verdicts depend on their batches by rounding."""


def rate(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the rate of the server and that of the process."""
    verifier, images, prompts = subject(options)
    order = np.random.default_rng(1).permutation(len(images))
    verifier.verify(images, prompts)  # warms up
    here, there, waits = [], [], []
    with tempfile.TemporaryDirectory() as folder, serving(verifier) as url:
        np.save(Path(folder, "pictures.npy"), np.stack([np.asarray(i) for i in images]))
        Path(folder, "prompts.json").write_text(json.dumps(prompts))
        send = partial(clients, url, folder, options.clients)
        send(options.threads, TOGETHER)  # warms up
        for _ in range(options.runs):
            seconds, served = send(options.threads, TOGETHER)
            there.append(seconds)
            waits += [wait for one in served for wait in one["waits"]]
        send(1, 1, most=1)  # warms up
        alone = send(1, 1, most=options.single)[1]
    for _ in range(options.runs):
        began = time.perf_counter()
        verdicts = verifier.verify(images, prompts)
        here.append(time.perf_counter() - began)
    shuffled = verifier.verify([images[i] for i in order], [prompts[i] for i in order])
    again = dict(zip(order.tolist(), shuffled, strict=True))
    apart: dict[int, Verdict] = {}
    for size in SMALL_CALLS:
        places = range(len(apart), min(len(apart) + size, len(images)))
        found = verifier.verify([images[i] for i in places], [prompts[i] for i in places])
        apart |= zip(places, found, strict=True)
    singles = [wait for one in alone for wait in one["waits"]]
    rates = {"process": len(images) / np.median(here), "server": len(images) / np.median(there)}
    return {
        "verifier": options.random or options.verifier,
        "pictures": len(images),
        "images_per_s_process": rates["process"],
        "images_per_s_server": rates["server"],
        "server_share": rates["server"] / rates["process"],
        "runs_process_s": sorted(here),
        "runs_server_s": sorted(there),
        "request_wait_s": percentiles(waits),
        "one_by_one_wait_s": percentiles(singles),
        "server": compare(verdicts, {k: v for one in served for k, v in one["verdicts"].items()}),
        "other_order": compare(verdicts, {str(k): summary(v) for k, v in again.items()}),
        "small_calls": compare(verdicts, {str(k): summary(v) for k, v in apart.items()}),
    }


def subject(options: argparse.Namespace) -> tuple[Any, list[Image.Image], list[str]]:
    """Returns the verifier, its pictures and prompts."""
    import torch

    from tts_verifier.verifiers import load_verifier

    count, device = options.pictures, options.device
    if options.random:
        from random_models import image_doctor, image_doctor_model

        tiny = options.random == "tiny"
        model = image_doctor_model(device, tiny=tiny)
        model = model.to(torch.bfloat16 if device.startswith("cuda") else torch.float32)
        verifier = image_doctor(model, tokens=16 if tiny else 256, tiny=tiny)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (count, 512, 512, 3), np.uint8)
        return verifier, [Image.fromarray(one) for one in pixels], ["a picture"] * count
    images, captions = caption_pictures(count)
    return load_verifier(options.verifier, device=device), images, captions


@contextmanager
def serving(verifier: Any) -> Iterator[str]:
    """Serves as `tts-serve` does, with the verifier in this process and HTTP in another one.

    So both rates are of one copy of the weights.
    """
    from tts_verifier.serve.limits import RequestLimits
    from tts_verifier.serve.processes.verifier import VerifierProcess
    from tts_verifier.serve.server import SWITCH_SECONDS

    before = sys.getswitchinterval()
    # As `serve` does in the main thread.
    sys.setswitchinterval(SWITCH_SECONDS)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limits = RequestLimits(queue=100_000)
    process = VerifierProcess(verifier, host="127.0.0.1", port=port, limits=limits)
    thread = threading.Thread(target=process.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        # Returns when the server answers.
        Remote(url)
        yield url
    finally:
        process.end()
        thread.join()
        sys.setswitchinterval(before)


def clients(
    url: str, folder: str, count: int, threads: int, together: int, *, most: int | None = None
) -> tuple[float, list[dict[str, Any]]]:
    """Runs the client processes; returns the seconds from the first request to the last answer."""
    command = [sys.executable, __file__, "client", "--url", url, "--folder", folder]
    command += ["--clients", str(count), "--threads", str(threads), "--together", str(together)]
    command += [] if most is None else ["--most", str(most)]
    commands = [[*command, "--number", str(number)] for number in range(count)]
    # If a client fails, the others are killed first; otherwise the threads would wait for them.
    with ThreadPoolExecutor(count) as reading, running(commands) as processes:
        for process in processes:
            wait_for(process, "ready")
        began = time.perf_counter()
        tell(processes)
        list(reading.map(partial(wait_for, word="done"), processes))
        seconds = time.perf_counter() - began
        # What they found takes time to write and to read, which the server has needed until now.
        tell(processes)
        return seconds, list(reading.map(found_by, processes))


@contextmanager
def running(commands: list[list[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts processes with pipes, and kills those that still run at the end of the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
                )
            )  # fmt: skip
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def tell(processes: list[subprocess.Popen[str]]) -> None:
    """Has the clients go on."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    """Waits until a client says a word."""
    assert process.stdout is not None
    assert process.stdout.readline() == f"{word}\n"


def found_by(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Returns what a client has found, which it says at its end."""
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.read())
    assert process.wait() == 0
    return found


def client(options: argparse.Namespace) -> None:
    """One client process: its part of the pictures, in requests of a few."""
    pictures = np.load(Path(options.folder, "pictures.npy"), mmap_mode="r")
    prompts = json.loads(Path(options.folder, "prompts.json").read_text())
    mine = list(range(options.number, len(prompts), options.clients))[: options.most]
    parts = [mine[i : i + options.together] for i in range(0, len(mine), options.together)]
    images = {place: Image.fromarray(np.array(pictures[place])) for place in mine}
    remote, waits, verdicts = Remote(options.url), [], {}

    def ask(part: list[int]) -> None:
        began = time.perf_counter()
        found = remote.verify([images[i] for i in part], [prompts[i] for i in part])
        waits.append(time.perf_counter() - began)
        verdicts.update(zip(part, found, strict=True))

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(options.threads) as threads:
        list(threads.map(ask, parts))
    print("done", flush=True)
    # Other clients still need the machine.
    sys.stdin.readline()
    print(json.dumps({"waits": waits, "verdicts": {i: summary(v) for i, v in verdicts.items()}}))


def summary(verdict: Verdict) -> dict[str, Any]:
    """Returns what is compared: the reply, the scores, and the maps on a coarse grid."""
    maps = {name: verdict.heatmaps.on_grid(name).pooled(8, 8).tolist() for name in verdict.heatmaps}
    return {"reply": verdict.text, "scores": list(verdict.scores.values()), "maps": maps}


def compare(verdicts: list[Verdict], others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the share of equal replies, and how far scores and maps of these differ at most."""
    pairs = [(summary(verdicts[int(place)]), other) for place, other in others.items()]
    equal = [(a, b) for a, b in pairs if a["reply"] == b["reply"] and [*a["maps"]] == [*b["maps"]]]

    def furthest(what: str) -> float:
        parts = [
            (x, y)
            for a, b in equal
            for x, y in ([(a[what], b[what])] if what == "scores" else
                         [(a[what][n], b[what][n]) for n in a[what]])
        ]  # fmt: skip
        gaps = [np.nanmax(np.abs(np.subtract(x, y)), initial=0.0) for x, y in parts]
        return float(max(gaps, default=0.0))

    return {
        "compared": len(pairs),
        "equal_replies": len(equal) / max(len(pairs), 1),
        "largest_gap_of_scores": furthest("scores"),
        "largest_gap_of_maps": furthest("maps"),
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    fast = parts.add_parser("rate")
    fast.add_argument("--verifier", default="shapes")
    fast.add_argument("--random", choices=("3b", "tiny"), help="random weights of this size")
    fast.add_argument("--device", default="cuda" if cuda() else "cpu")
    fast.add_argument("--pictures", type=int, default=8192)
    fast.add_argument("--clients", type=int, default=16)
    fast.add_argument("--runs", type=int, default=3)
    fast.add_argument("--threads", type=int, default=8, help="requests of a client at a time")
    fast.add_argument("--single", type=int, default=64, help="pictures of a client one by one")
    calm = parts.add_parser("hostile")
    calm.add_argument("--verifier", default="fake", help="fake, or an ImageDoctor")
    calm.add_argument("--requests", type=int, default=100_000)
    calm.add_argument("--seconds", type=float, default=3600)
    calm.add_argument("--workers", type=int, default=128, help="requests at a time")
    one = parts.add_parser("client")
    for name in ("url", "folder"):
        one.add_argument(f"--{name}")
    for name in ("clients", "threads", "together", "number", "most"):
        one.add_argument(f"--{name}", type=int)
    for part in (fast, calm):
        part.add_argument("--out", type=Path, help="a file of JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RunWarning)
    if options.part == "client":
        client(options)
        return
    found = rate(options) if options.part == "rate" else hostile(options)
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def cuda() -> bool:
    """Says whether there is a GPU."""
    if "rate" not in sys.argv:
        return False
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
