"""How long a large report takes, how large it is, and how soon a browser shows it.

    python examples/benchmarks/report_scale.py --prompts 200 --candidates 16
    python examples/benchmarks/report_scale.py --prompts 5000 --candidates 16 --commands

Best-of-N on fakes, with two maps and a reply of some 900 letters a candidate. For the linked
page and for `--inline`: seconds to build, MiB of HTML, and, where Chromium is on the path,
milliseconds until it has painted something and what it has loaded then. Every line is JSON.

`--commands` writes the rows of such a run without generating anything (`large_run.py`), and runs
`tts-report` and `tts-replay` on it, each in a process of its own: seconds by the clock and of the
processor, most memory, and the sizes of the pages. With `--previews` every draw is verified at a
half and then finished, as `successive_halving` with `keep: 1` does; half as many draws then make
as many rows.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chromium import Chromium, find_chromium
from large_run import write_run

from tts_verifier.analysis.report import write_report
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Verdict

PAINT = "performance.getEntriesByName('first-contentful-paint')"


class Wordy(FakeVerifier):
    """Writes as much as a real one, never the same twice."""

    def verify(self, images: Any, prompts: Sequence[str], **options: Any) -> list[Verdict]:
        """Judges."""
        dice = random.Random(len(self.trace))
        words = [f"word{i}" for i in range(300)]
        found = super().verify(images, prompts, **options)
        return [replace(v, text=" ".join(dice.choices(words, k=150))) for v in found]


def painted(page: Path, profile: Path) -> dict[str, float]:
    program = find_chromium()
    if program is None:
        return {}
    with Chromium(program, profile) as browser:
        browser.size(1200, 900)
        browser.open(page)
        browser.wait(f"{PAINT}.length > 0")
        loaded = browser.look("[...document.images].filter((image) => image.naturalWidth).length")
        return {"first_paint_ms": browser.look(f"{PAINT}[0].startTime"), "pictures_loaded": loaded}


MEASURED = """
import resource, runpy, sys, time
from pathlib import Path
began = time.perf_counter()
try:
    runpy.run_module("tts_verifier.cli." + sys.argv.pop(1), run_name="measured")[sys.argv.pop(1)]()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM")).split()[1]
    print(time.perf_counter() - began, used.ru_utime + used.ru_stime, int(peak) / 1024)
"""


def measure(name: str, *arguments: str) -> dict[str, float]:
    """Runs a command in a process of its own."""
    command = [sys.executable, "-c", MEASURED, name, f"{name}_command", *arguments]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, processor, peak = map(float, shown.splitlines()[-1].split())
    return {"seconds": seconds, "cpu_seconds": processor, "peak_mib": peak}


def commands(home: Path, prompts: int, candidates: int, *, previews: bool) -> None:
    """Prints what the commands take on a finished run."""
    folder = home / "run"
    began = time.perf_counter()
    rows = write_run(folder, prompts, candidates, previews=previews)
    print_line(rows=rows, seconds_to_write=time.perf_counter() - began, cores=os.cpu_count())
    for inline in (False, True) if rows <= 10_000 else (False,):
        page = home / f"report{inline}.html"
        more = ["--inline"] if inline else []
        figures = measure("report", str(folder), "--output", str(page), *more)
        sizes = [path.stat().st_size / 2**20 for path in home.glob(f"{page.stem}_pages/*.html")]
        print_line(
            command="tts-report",
            inline=inline,
            **figures,
            main_page_mib=page.stat().st_size / 2**20,
            more_pages=len(sizes),
            largest_mib=max(sizes, default=0.0),
            **painted(page, home / f"profile{inline}"),
        )
    figures = measure("replay", str(folder), "--plot", str(home / "replay.svg"))
    print_line(command="tts-replay", **figures)


def print_line(**figures: Any) -> None:
    rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="of a picture, in pixels")
    parser.add_argument("--commands", action="store_true", help="measure the commands")
    parser.add_argument("--previews", action="store_true", help="with a preview of every draw")
    options = parser.parse_args()
    with TemporaryDirectory() as home:
        if options.commands:
            prompts, candidates = options.prompts, options.candidates
            commands(Path(home), prompts, candidates, previews=options.previews)
            return
        folder = Path(home) / "run"
        prompts = [f"picture {i}" for i in range(options.prompts)]
        generator = FakeGenerator(batch_size=8, size=options.size)
        run(prompts, generator, Wordy(), BestOfN(options.candidates), folder=folder)
        for inline in (False, True):
            page = folder / "report.html"
            began = time.perf_counter()
            write_report([folder], page, inline=inline)
            seconds = time.perf_counter() - began
            print_line(
                inline=inline,
                cores=os.cpu_count(),
                seconds=seconds,
                html_mib=page.stat().st_size / 2**20,
                **painted(page, Path(home) / f"profile{inline}"),
            )


if __name__ == "__main__":
    main()
