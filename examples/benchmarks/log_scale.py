"""Measures how the log scales: time and memory of a million rows, and of 16,000 candidates.

    python examples/benchmarks/log_scale.py rows --count 1000000
    python examples/benchmarks/log_scale.py run --prompts 1000 --candidates 16

`rows` writes the rows of best-of-16 in batches of 16 and flushes each to the disk, as a run does.
Two more processes then continue that run: one as if it had been killed before its last prompt,
one after it has finished. Each prints when the first new image begins, how long the whole takes
(it looks at every row once and writes the table), and its memory. `run` runs best-of-N on fakes
with maps of 1024 x 1024 pixels. Every line printed is JSON. `log_overhead.py` measures what the
log costs a run.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from tts_verifier import run
from tts_verifier.identity import seed_for, trial_id
from tts_verifier.log import open_log
from tts_verifier.log.storage.codecs import IMAGE
from tts_verifier.log.storage.files import Folder, digest_of
from tts_verifier.runner import RunSetup, as_prompts
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Cost, Draw, Heatmap, Heatmaps, InFile, Job, Sample, Trial, Verdict

EACH = 16
"""Candidates of a prompt."""
MIB = 2**20


def memory() -> float:
    """Resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def peak() -> float:
    """Most resident memory so far in MiB; `ru_maxrss` would count the parent's before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def print_figures(**figures: Any) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded), flush=True)


def texts(count: int) -> list[str]:
    """Returns the prompts of so many rows, and one more."""
    return [f"a picture number {i}" for i in range(count // EACH + 1)]


def trials(folder: Path, count: int) -> Iterator[Trial]:
    """Yields trials as a run has them, each with a reply of 600 letters of its own.

    They share one image, whose file is in the folder.
    """
    dice = np.random.default_rng(0)
    words = [f"word{i}" for i in range(500)]
    book = " ".join(words[j] for j in dice.integers(0, 500, 200_000))
    settings = FakeGenerator().settings
    content = IMAGE.encode(Image.new("RGB", (16, 16)))
    Folder(folder).write("images/all.png", content)
    image = InFile(folder, "images/all.png", digest_of(content), IMAGE)
    for i, prompt in enumerate(prompt for prompt in as_prompts(texts(count)) for _ in range(EACH)):
        if i == count:
            return
        proposal = Draw(seed_for(0, prompt.text, i % EACH))
        a, b, c, d = dice.random(4).tolist()
        start = int(dice.integers(0, len(book) - 600))
        scores = {"semantic_alignment": a, "aesthetics": b, "plausibility": c, "overall": d}
        yield Trial(
            id=trial_id(prompt.text, proposal, settings),
            prompt=prompt,
            round=0,
            proposal=proposal,
            progress=1.0,
            verdict=Verdict(scores, boxes=((1.0, 2.0, 3.0, 4.0),), text=book[start : start + 600]),
            objective=0.8 * a + 0.1 * b + 0.1 * c,
            cost=Cost(40, 1, 1, 1.5, 0.5),
            image=image,
            size=(16, 16),
        )


def rows(folder: Path, count: int, batch: int = 16) -> None:
    prompts, about = as_prompts(texts(count)), {"recipe": None}
    setup = RunSetup(FakeGenerator(batch_size=batch), FakeVerifier(), BestOfN(EACH))
    buffered: list[Trial] = []
    spent, done, start = 0.0, 0, memory()
    with open_log(folder, about | setup.about(prompts), setup.generator.settings) as log:
        for trial in trials(folder, count):
            buffered.append(trial)
            if len(buffered) == batch or done + len(buffered) == count:
                began = time.perf_counter()
                log.append(buffered)
                spent += time.perf_counter() - began
                done += len(buffered)
                buffered = []
                if done % max(count // 10 // batch * batch, batch) == 0:
                    print_figures(
                        rows=done, ms_a_row=spent / done * 1e3, memory_mib=memory() - start
                    )
    print_figures(write_ms_a_row=spent / count * 1e3, parts=len(list((folder / "parts").iterdir())))
    for state in ("killed", "finished"):
        process = get_context("spawn").Process(target=resume, args=(folder, count, state))
        process.start()
        process.join()
    size = (folder / "trials.parquet").stat().st_size
    print_figures(bytes_a_row=size / count, parts_left=len(list((folder / "parts").iterdir())))


def resume(folder: Path, count: int, state: str) -> None:
    """Continues the run: if it was killed, the images of its last prompt are missing."""
    start, began = memory(), time.perf_counter()
    figures: dict[str, float] = {}

    class TimedGenerator(FakeGenerator):
        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            if not figures:
                figures["seconds_to_first_image"] = time.perf_counter() - began
                figures["memory_mib_then"] = memory() - start
            return super().generate(jobs)

    done = run(
        texts(count), TimedGenerator(batch_size=16), FakeVerifier(), BestOfN(EACH), folder=folder
    )
    prompts = len(done.summaries)
    figures["seconds_to_end"] = time.perf_counter() - began
    figures["peak_above_start_mib"] = peak() - start
    print_figures(state=state, prompts=prompts, **figures)


class LargeMaps(FakeVerifier):
    """Gives two maps on a grid of 1024 x 1024 with every verdict."""

    def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
        """Returns the fakes' verdicts with large maps."""
        ramp = np.linspace(0, 1, 1024, dtype=np.float32)
        verdicts = []
        for i, verdict in enumerate(super().verify(images, prompts, **options)):
            grid = np.outer(ramp, np.roll(ramp, 17 * i))
            maps = {name: Heatmap(grid, (1024, 1024)) for name in ("artifact", "misalignment")}
            verdicts.append(replace(verdict, heatmaps=Heatmaps(maps)))
        return verdicts


def large_run(folder: Path, prompts: int, candidates: int) -> None:
    start, began = memory(), time.perf_counter()
    generator = FakeGenerator(batch_size=8, size=1024)
    texts = [f"picture {i}" for i in range(prompts)]
    result = run(texts, generator, LargeMaps(), BestOfN(candidates), folder=folder)
    table = (folder / "trials.parquet").stat().st_size
    print_figures(
        candidates=len(result.trials),
        seconds=time.perf_counter() - began,
        peak_above_start_mib=peak() - start,
        bytes_a_row=table / len(result.trials),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rows", "run"])
    parser.add_argument("--count", type=int, default=1_000_000, help="rows to write")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=16)
    options = parser.parse_args()
    with TemporaryDirectory() as home:
        folder = Path(home) / "run"
        if options.what == "rows":
            rows(folder, options.count)
        else:
            large_run(folder, options.prompts, options.candidates)


if __name__ == "__main__":
    main()
