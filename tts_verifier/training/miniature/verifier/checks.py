"""Free-running checks during training: what the verifier says of pictures it never saw.

They go through `ImageDoctor.verify`, so that what is measured is what users run.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_verifier.evaluation import correlation
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import FlawedImages, render_flawed
from tts_verifier.shapes.grammar import phrase, variants
from tts_verifier.training.miniature.verifier import replies
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint
from tts_verifier.verifiers.imagedoctor.text.reply import parse
from tts_verifier.verifiers.imagedoctor.verifier import ImageDoctor

_OBJECT: Final = re.compile(r"#\d+ (\w+) (\w+) (\d+) (\d+) (\d+)")
CLOSE: Final = 24
"""Distance in the 512-px frame, along either axis, within which a place is right."""

BATCH: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Pictures with planted flaws whose captions training never sees, and their truth."""

    pictures: list[Image.Image]
    captions: list[str]
    flawed: FlawedImages


def held_out(count: int, seed: int) -> HeldOut:
    """Makes `count` held-out pictures; the same seed gives the same."""
    rng = random.Random(seed)
    specs = random_specs(count, rng, split="held_out")
    flawed = render_flawed(specs, torch.Generator().manual_seed(seed))
    captions = [phrase(spec, rng.randrange(variants(spec))) for spec in specs]
    return HeldOut(pictures_of(flawed.images), captions, flawed)


def pictures_of(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] -> RGB pictures."""
    pixels = (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p) for p in pixels]


def check(checkpoint: Checkpoint, held: HeldOut) -> dict[str, float]:
    """Returns shares of objects whose colour, shape and place are said, and how scores fare.

    `objects`: colour and shape right, of those that are there; `places`: of these, within
    `CLOSE`. `plcc`: of semantic alignment. `decided`: pass or fail, right. `whole`: replies
    with all four scores.
    """
    verdicts = ImageDoctor(checkpoint, batch_size=BATCH).verify(held.pictures, held.captions)
    readings = held.flawed.readings
    pairs = [found(v.text, replies.look(r.things)) for v, r in zip(verdicts, readings, strict=True)]
    there, named, placed = (float(sum(part)) for part in zip(*pairs, strict=True))
    said = np.array([v.scores["semantic_alignment"] for v in verdicts])
    true = np.array([r.score for r in readings])
    usable = np.isfinite(said)
    decided = (np.nan_to_num(said) > 0.99) == (true > 0.99)
    whole = [parse(v.text, reasoning=True).whole for v in verdicts]
    return {
        "objects": named / max(there, 1),
        "places": placed / max(named, 1),
        "plcc": correlation(said[usable], true[usable]),
        "decided": float(decided.mean()),
        "whole": float(np.mean(whole)),
    }


def found(text: str, truth: str) -> tuple[int, int, int]:
    """Counts objects of the true list, those named in the text, and those also well placed."""
    said = _objects(text)
    there = _objects(truth)
    named = placed = 0
    for colour, shape, x, y, _ in there:
        same = [o for o in said if o[:2] == (colour, shape)]
        near = min(same, key=lambda o: abs(o[2] - x) + abs(o[3] - y), default=None)
        if near is not None:
            said.remove(near)
            named += 1
            placed += max(abs(near[2] - x), abs(near[3] - y)) <= CLOSE
    return len(there), named, placed


def _objects(text: str) -> list[tuple[str, str, int, int, int]]:
    head = text.partition(replies.CHECKS)[0]
    return [(c, s, int(x), int(y), int(r)) for c, s, x, y, r in _OBJECT.findall(head)]
