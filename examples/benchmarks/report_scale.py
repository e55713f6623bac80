"""How long a large report takes, how large it is, and how soon a browser shows it.

    python examples/benchmarks/report_scale.py --prompts 200 --candidates 16

Best-of-N on fakes, with two maps and a reply of some 900 letters a candidate. For the linked
page and for `--inline`: seconds to build, MiB of HTML, and, where Chromium is on the path,
milliseconds until it has painted something and what it has loaded then. Every line is JSON.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chromium import Chromium, find_chromium

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="of a picture, in pixels")
    options = parser.parse_args()
    with TemporaryDirectory() as home:
        folder = Path(home) / "run"
        prompts = [f"picture {i}" for i in range(options.prompts)]
        generator = FakeGenerator(batch_size=8, size=options.size)
        run(prompts, generator, Wordy(), BestOfN(options.candidates), folder=folder)
        for inline in (False, True):
            page = folder / "report.html"
            began = time.perf_counter()
            write_report([folder], page, inline=inline)
            figures = {"seconds": round(time.perf_counter() - began, 2)}
            figures["html_mib"] = round(page.stat().st_size / 2**20, 2)
            figures |= painted(page, Path(home) / f"profile{inline}")
            print(json.dumps({"inline": inline, "cores": os.cpu_count(), **figures}), flush=True)


if __name__ == "__main__":
    main()
