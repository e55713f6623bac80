"""Writes the run folder of a search over thousands of prompts, without generating or verifying.

Pictures are small and alike, but every candidate has its own image and its own two maps on a
letterboxed grid, as well as a reply of some 900 letters, a judge and a category. `report_scale.py`
uses it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from tts_verifier.identity import seed_for, trial_id
from tts_verifier.log import open_log
from tts_verifier.log.storage.codecs import IMAGE, HeatmapCodec
from tts_verifier.log.storage.files import digest_of
from tts_verifier.types import (
    Continue,
    Cost,
    Draw,
    Heatmap,
    Heatmaps,
    InFile,
    Prompt,
    Proposal,
    Trial,
    Verdict,
)

SIZE = (32, 24)
BOX = (0.0, 0.125, 1.0, 0.875)
MAPS = ("artifact", "misalignment")
CATEGORIES = ("counting", "colours", "relations", "text", "")


class Writer:
    """Makes trials whose files are in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._dice = folder, random.Random(0)
        self._words = [f"word{i}" for i in range(300)]
        self._codec = HeatmapCodec(SIZE, BOX)
        ramp = np.outer(np.linspace(0, 1, 16, dtype=np.float32), np.ones(16, np.float32))
        self._image = IMAGE.encode(Image.effect_noise(SIZE, 64).convert("RGB"))
        self._map = self._codec.encode(Heatmap(ramp, SIZE, BOX))
        for name in ("images", "heatmaps"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def trial(self, prompt: Prompt, proposal: Proposal) -> Trial:
        """Returns a trial with its image and maps in files."""
        dice, name = self._dice, trial_id(prompt.text, proposal, {"model": "none"})
        # With two digits, as ImageDoctor writes them: ties are common.
        scores = {
            score: round(dice.betavariate(4, 2), 2)
            for score in ("semantic_alignment", "aesthetics", "plausibility", "overall")
        }
        a, b, c, _ = scores.values()
        failed = dice.random() < 0.002
        verdict = Verdict(
            scores,
            heatmaps=Heatmaps({kind: self._file(f"{name}.{kind}") for kind in MAPS}),
            boxes=((1.0, 2.0, 13.0, 14.5), (20.25, 3.0, 30.0, 12.0)),
            text=" ".join(dice.choices(self._words, k=130)),
        )
        path = f"images/{name}.png"
        (self._folder / path).write_bytes(self._image)
        return Trial(
            id=name,
            prompt=prompt,
            round=int(isinstance(proposal, Continue)),
            proposal=proposal,
            progress=getattr(proposal, "until", 1.0),
            verdict=None if failed else verdict,
            objective=float("nan") if failed else 0.8 * a + 0.1 * b + 0.1 * c,
            cost=Cost(40, 1, 1, 1.5, 0.5),
            image=InFile(self._folder, path, digest_of(self._image), IMAGE),
            size=SIZE,
            judge={} if failed else {"passed": float(dice.random() < 0.6 * a)},
            error="the reply has no scores" if failed else "",
        )

    def _file(self, name: str) -> InFile[Heatmap]:
        path = f"heatmaps/{name}.png"
        (self._folder / path).write_bytes(self._map)
        return InFile(self._folder, path, digest_of(self._map), self._codec)


def trials(folder: Path, prompts: int, candidates: int, *, previews: bool) -> Iterator[Trial]:
    """Yields all trials; with previews, every draw is verified at a half and then finished."""
    writer = Writer(folder)
    for i in range(prompts):
        category = CATEGORIES[i % len(CATEGORIES)]
        prompt = Prompt(f"{i:04}", f"a photo of {i} apples beside a blue box, number {i}", category)
        seeds = [seed_for(0, prompt.text, j) for j in range(candidates)]
        if not previews:
            yield from (writer.trial(prompt, Draw(seed)) for seed in seeds)
            continue
        halves = [writer.trial(prompt, Draw(seed, 0.5)) for seed in seeds]
        yield from halves
        yield from (writer.trial(prompt, Continue(t.id, 1.0, 7)) for t in halves if not t.error)


def write_run(folder: Path, prompts: int, candidates: int, *, previews: bool = False) -> int:
    """Writes a finished run; returns the number of its rows."""
    count, best = 0, {}
    about = {"strategy": {"name": "best_of_n", "n": candidates}, "recipe": None}
    with open_log(folder, about, {"model": "none"}) as log:
        some = trials(folder, prompts, candidates, previews=previews)
        while batch := list(islice(some, 4096)):
            log.append(batch)
            count += len(batch)
            for trial in batch:
                known = best.get(trial.prompt.id)
                if trial.finished and (known is None or trial.objective > known.objective):
                    best[trial.prompt.id] = trial
        log.finish({trial.id for trial in best.values()})
    return count
