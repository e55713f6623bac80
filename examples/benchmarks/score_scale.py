"""Measures how `tts-score` scales: memory, resuming and kills over a million pictures.

    python examples/benchmarks/score_scale.py --count 1000000

The pictures are tiny and inside a Parquet file (`--kind files`: a file each), and the verifier is a
few lines of numpy, so that what is measured is the work around a verifier. One process scores into
a folder of parts and is killed by SIGKILL at half of the rows; a second one continues to the end; a
third one finds nothing left to do and prints the best ten. Every line printed is JSON. Memory is
above that of the process before it opens the folder, without what libraries take.
"""

import argparse
import json
import os
import resource
import signal
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tts_verifier.scoring import best_rows, open_pairs, score_into_parts
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict

MIB = 2**20


def memory() -> float:
    """Resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def print_figures(**figures: Any) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded), flush=True)


def picture(number: int) -> bytes:
    """Returns a picture of two pixels, another one for each number."""
    return b"P6 2 1 255\n" + number.to_bytes(6, "little")


def write_table(path: Path, count: int, kind: str) -> None:
    """Writes a table of pictures, or of the paths of files that it writes too."""
    at_once = 10_000
    schema = pa.schema(
        {"image": pa.binary() if kind == "bytes" else pa.string(), "prompt": pa.string()}
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, at_once):
            numbers = range(start, min(start + at_once, count))
            images: list[Any] = [picture(i) for i in numbers]
            if kind == "files":
                folder = path.parent / f"{start:08d}"
                folder.mkdir()
                for i, content in zip(numbers, images, strict=True):
                    (folder / f"{i}.ppm").write_bytes(content)
                images = [f"{folder.name}/{i}.ppm" for i in numbers]
            prompts = [f"picture number {i // 4}" for i in numbers]
            writer.write_table(pa.table([images, prompts], schema=schema))


class Counting(FakeVerifier):
    """Notes in a file how many pictures each call has, and prints memory at every tenth of all."""

    def __init__(self, log: Path, count: int, kill_at: int | None) -> None:
        super().__init__(lambda image, prompt: {"red": image.getpixel((0, 0))[0] / 255.0})
        self.log, self.count, self.kill_at = log, count, kill_at
        self.began, self.began_cpu = time.perf_counter(), time.process_time()
        self.objective = type(self.objective)({"red": 1.0})
        self.start, self.done = memory(), 0

    def verify(self, images: Any, prompts: Sequence[str], **options: Any) -> list[Verdict]:
        """Returns the fakes' verdicts."""
        if not self.done:
            print_figures(
                seconds_to_first_verdict=time.perf_counter() - self.began,
                of_the_processor=time.process_time() - self.began_cpu,
            )
        with open(self.log, "a") as log:
            log.write(f"{len(images)}\n")
        self.done += len(images)
        tenths = self.done * 10 // self.count
        if tenths > (self.done - len(images)) * 10 // self.count:
            print_figures(judged=self.done, memory_mib=memory() - self.start)
        if self.kill_at is not None and self.done >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(images, prompts, **options)


def work(home: Path, count: int, kill_at: int | None) -> None:
    began = time.perf_counter()
    verifier = Counting(home / "judged", count, kill_at)
    source = open_pairs([str(home / "table.parquet")])
    parts = score_into_parts(home / "scores", verifier, source, detail="score")
    seconds = time.perf_counter() - began
    print_figures(
        judged=verifier.done,
        seconds=seconds,
        of_the_processor=time.process_time() - verifier.began_cpu,
        memory_mib=memory() - verifier.start,
    )
    began = time.perf_counter()
    best = best_rows(parts.rows(), 10)
    print_figures(
        seconds_to_the_best_ten=time.perf_counter() - began,
        best=best[0]["objective"],
        memory_mib=memory() - verifier.start,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--kind", choices=["bytes", "files"], default="bytes")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        home = Path(name)
        write_table(home / "table.parquet", options.count, options.kind)
        for what, kill_at in (("killed", options.count // 2), ("continued", None), ("again", None)):
            print_figures(process=what)
            process = get_context("spawn").Process(target=work, args=(home, options.count, kill_at))
            process.start()
            process.join()
        calls = [int(line) for line in (home / "judged").read_text().splitlines()]
        parts = list((home / "scores").glob("*.parquet"))
        print_figures(
            judged_twice=sum(calls) - options.count,
            largest_batch=max(calls),
            rows=sum(pq.read_metadata(path).num_rows for path in parts),
            parts=len(parts),
            bytes_a_row=sum(path.stat().st_size for path in parts) / options.count,
        )


if __name__ == "__main__":
    main()
