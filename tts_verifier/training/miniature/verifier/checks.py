"""Checks during training: the verifier's replies about images that training never sees.

They go through `ImageDoctor.verify`, so they measure what users run.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image

from tts_verifier.evaluation import plcc
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import FlawedImages, render_flawed
from tts_verifier.shapes.grammar import random_phrase
from tts_verifier.shapes.renderer import to_pil_images
from tts_verifier.training.miniature.verifier.target_replies import CHECKS_START, objects_text
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint
from tts_verifier.verifiers.imagedoctor.text.reply import parse_reply
from tts_verifier.verifiers.imagedoctor.verifier import ImageDoctor

_OBJECT_PATTERN: Final = re.compile(r"#\d+ (\w+) (\w+) (\d+) (\d+) (\d+)")
PLACE_TOLERANCE: Final = 24
"""Distance in the 512-pixel frame, along either axis, within which a place is right."""
PASS_SCORE: Final = 0.99
"""Semantic alignment above which an image passes; scores have two decimals."""
CHECK_BATCH: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutImages:
    """Images with planted flaws whose captions training never sees, and their truth."""

    images: list[Image.Image]
    """RGB, 128 x 128."""
    captions: list[str]
    """The caption of each image, which it may contradict."""
    flawed: FlawedImages
    """The same images as tensors, with the truth."""


def held_out_images(count: int, seed: int) -> HeldOutImages:
    """Makes `count` held-out images; the same seed gives the same ones."""
    rng = random.Random(seed)
    specs = random_specs(count, rng, split="held_out")
    flawed = render_flawed(specs, torch.Generator().manual_seed(seed))
    captions = [random_phrase(spec, rng) for spec in specs]
    return HeldOutImages(to_pil_images(flawed.images), captions, flawed)


def check_replies(checkpoint: Checkpoint, held_out: HeldOutImages) -> dict[str, float]:
    """Verifies held-out images and compares the replies with the truth.

    Returns:
        - `objects`: share of the objects that are named with their colour and shape
        - `places`: share of the named objects that are placed within `PLACE_TOLERANCE`
        - `plcc`: correlation of semantic alignment with its truth, over readable scores
        - `score_plcc`: the same of answers without reasons, an unreadable score being 0
        - `decided`: share of images whose pass or fail is right
        - `whole`: share of replies with all four scores
    """
    verifier = ImageDoctor(checkpoint, batch_size=CHECK_BATCH)
    verdicts = verifier.verify(held_out.images, held_out.captions)
    alone = verifier.verify(held_out.images, held_out.captions, detail="score")
    readings = held_out.flawed.readings
    counts = [
        count_objects(v.text, objects_text(r.things))
        for v, r in zip(verdicts, readings, strict=True)
    ]
    total, named, placed = (float(sum(column)) for column in zip(*counts, strict=True))
    predicted = np.array([v.scores["semantic_alignment"] for v in verdicts])
    answered = np.array([v.scores["semantic_alignment"] for v in alone])
    true = np.array([r.score for r in readings])
    readable = np.isfinite(predicted)
    # An unreadable score becomes 0 and so counts as a fail.
    decided = (np.nan_to_num(predicted) > PASS_SCORE) == (true > PASS_SCORE)
    whole = [parse_reply(v.text, reasoning=True).is_complete for v in verdicts]
    return {
        "objects": named / max(total, 1),
        "places": placed / max(named, 1),
        "plcc": plcc(predicted[readable], true[readable]),
        "score_plcc": plcc(np.nan_to_num(answered), true),
        "decided": float(decided.mean()),
        "whole": float(np.mean(whole)),
    }


class ObjectCounts(NamedTuple):
    """How many objects a reply gets right."""

    total: int
    """Objects of the true list."""
    named: int
    """Objects that the reply names with their colour and shape."""
    placed: int
    """Named objects that the reply also places within `PLACE_TOLERANCE`."""


def count_objects(reply: str, true_objects: str) -> ObjectCounts:
    """Compares the objects of a reply with a true list, as `objects_text` writes it."""
    left = _objects_in(reply)
    true = _objects_in(true_objects)
    named = placed = 0
    for colour, shape, x, y in true:
        same = [o for o in left if o[:2] == (colour, shape)]
        nearest = min(same, key=lambda o: abs(o[2] - x) + abs(o[3] - y), default=None)
        if nearest is not None:
            left.remove(nearest)  # it counts for one object only
            named += 1
            placed += max(abs(nearest[2] - x), abs(nearest[3] - y)) <= PLACE_TOLERANCE
    return ObjectCounts(len(true), named, placed)


def _objects_in(reply: str) -> list[tuple[str, str, int, int]]:
    """Returns (colour, shape, x, y) of each object in a reply's list."""
    objects = reply.partition(CHECKS_START)[0]
    return [(c, s, int(x), int(y)) for c, s, x, y, _ in _OBJECT_PATTERN.findall(objects)]
