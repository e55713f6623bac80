"""Pictures of the miniature world, half renders and half a generator's samples, and their truth.

Renders have the planted flaws of `shapes.flaws`, and their truth is known. The oracle reads the
objects of a sample; some samples get a planted artifact besides. The formulas of the scores are
those of `shapes.flaws`, with one addition: a thing of no known shape, such as a melted one, is an
artifact of the sample's own. It takes `OWN_FLAW` of the plausibility, times the share of such
things.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tts_verifier.generators.diffusers.loading import load_pipeline
from tts_verifier.shapes.artifacts import ARTIFACT_KINDS, plant_artifacts
from tts_verifier.shapes.flaws import ARTIFACT_SHARE, render_flawed, score_columns
from tts_verifier.shapes.grammar import PLURAL, Constraint, Spec, parse_caption
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.shapes.readers.oracle import find_things
from tts_verifier.shapes.renderer import to_uint8
from tts_verifier.shapes.vocabulary import COLOURS, COUNTS
from tts_verifier.training.miniature.generator.sampling import generate_images
from tts_verifier.training.miniature.verifier.rows import Truth
from tts_verifier.training.richhf.fields import prompt_words
from tts_verifier.types import Box
from tts_verifier.types.score_names import SCORE_NAMES

OWN_FLAW: Final = 0.6
"""What plausibility loses where all things of a sample have no known shape."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class MadePicture:
    """A picture with its caption and truth."""

    pixels: Pixels
    """uint8 (128, 128, 3), sRGB."""
    caption: str
    """Its prompt, which it may contradict."""
    source: str
    """`render` or `sample`."""
    truth: Truth
    """The facts about it."""
    artifacts: tuple[Box, ...]
    """xyxy in pixels of 128 around what looks broken."""


def draw_samples(captions: Sequence[str], seed: int, device: str | None) -> Pixels:
    """Draws a picture for each caption with the bundled generator: uint8 (N, 128, 128, 3).

    Equal seeds give equal pictures on one kind of device; across kinds they differ by rounding.
    """
    if device not in _PIPELINES:
        _PIPELINES[device] = load_pipeline("shapes", "float32", device)
    pixels: Pixels = generate_images(_PIPELINES[device], captions, seed=seed).numpy()
    return pixels


def make_pictures(captions: Sequence[str], samples: Pixels, seed: int) -> list[MadePicture]:
    """Makes a picture for each caption, in an order that mixes renders and samples.

    Args:
        captions: of the samples first, then of the renders.
        samples: uint8 (M, 128, 128, 3), at most as many as captions.
        seed: decides everything.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(samples)
    made = _of_samples(captions[:count], samples, generator) if count else []
    if len(captions) > count:
        made += _of_renders(captions[count:], generator)
    random.Random(seed).shuffle(made)
    return made


def aligned_words(caption: str, reading: Reading) -> list[bool]:
    """Says of each word of a caption whether what it asks for is shown.

    A shape stands for its object, a colour for the colour of the next object, a number for the
    count, and the words between two objects for their relation.
    """
    holds, noun, found = reading.constraints, 0, []
    for word in prompt_words(caption):
        constraint: Constraint | None = Constraint("relation")
        if word in _SHAPE_WORDS:
            constraint = Constraint("object", noun)
            noun += 1
        elif word in COLOURS:
            constraint = Constraint("colour", noun)
        elif word in COUNTS:
            constraint = Constraint("count", noun)
        elif noun != 1 or word in ("a", "an", "and"):
            constraint = None
        found.append(constraint is None or holds.get(constraint, True))
    return found


def truth_as_json(picture: MadePicture) -> dict[str, Any]:
    """Returns what `truth_from_json` needs besides the prompt, as values that JSON can hold."""
    truth = picture.truth
    return {
        "source": picture.source,
        "scores": truth.scores,
        "things": [[t.shape, t.colour, t.centre, t.box] for t in truth.reading.things],
        "artifact": truth.artifact,
        "artifact_kind": truth.kind,
    }


def truth_from_json(row: Mapping[str, Any]) -> Truth:
    """Reads a row that has a `prompt` and what `truth_as_json` wrote."""
    things = [
        Thing(shape, colour, (centre[0], centre[1]), (box[0], box[1], box[2], box[3]))
        for shape, colour, centre, box in row["things"]
    ]
    box = row["artifact"]
    reading = compare(parse_caption(row["prompt"]), things)
    return Truth(reading, row["scores"], tuple(box) if box else None, row["artifact_kind"])


_SHAPE_WORDS: Final = frozenset((*PLURAL, *PLURAL.values()))
_PIPELINES: dict[str | None, Any] = {}
"""The loaded generator by device, kept for the parts that follow."""


def _of_renders(captions: Sequence[str], generator: torch.Generator) -> list[MadePicture]:
    flawed = render_flawed([parse_caption(c) for c in captions], generator)
    pixels = to_uint8(flawed.images).permute(0, 2, 3, 1).numpy()
    planted, scores = flawed.artifacts, _by_name(flawed.scores)
    boxes, kinds = planted.box.tolist(), planted.kind.tolist()
    return [
        _made(pixels[i], caption, "render", flawed.readings[i], scores[i], _planted(box, kind))
        for i, (caption, box, kind) in enumerate(zip(captions, boxes, kinds, strict=True))
    ]


def _of_samples(
    captions: Sequence[str], samples: Pixels, generator: torch.Generator
) -> list[MadePicture]:
    # Read before planting: an artifact changes neither the objects nor their alignment.
    specs: list[Spec] = [parse_caption(caption) for caption in captions]
    readings = [compare(s, find_things(p)) for s, p in zip(specs, samples, strict=True)]
    images = torch.from_numpy(samples).permute(0, 3, 1, 2).float() / 255
    planted = plant_artifacts(images, generator, share=ARTIFACT_SHARE)
    scores = _by_name(score_columns(torch.tensor([r.score for r in readings]), planted))
    pixels = to_uint8(planted.images).permute(0, 2, 3, 1).numpy()
    boxes, kinds = planted.box.tolist(), planted.kind.tolist()
    made = []
    for i, reading in enumerate(readings):
        own = [(thing.box, "melted") for thing in reading.things if thing.shape is None]
        loss = OWN_FLAW * len(own) / max(len(reading.things), 1) * scores[i]["plausibility"]
        scores[i]["plausibility"] -= loss
        scores[i]["overall"] -= 0.3 * loss
        artifacts = [*_planted(boxes[i], kinds[i]), *own]
        made.append(_made(pixels[i], captions[i], "sample", reading, scores[i], artifacts))
    return made


def _by_name(scores: torch.Tensor) -> list[dict[str, float]]:
    return [dict(zip(SCORE_NAMES, row, strict=True)) for row in scores.tolist()]


def _planted(box: Sequence[float], kind: int) -> list[tuple[Box, str]]:
    x1, y1, x2, y2 = box
    return [((x1, y1, x2, y2), ARTIFACT_KINDS[kind])] if kind >= 0 else []


def _made(
    pixels: Pixels,
    caption: str,
    source: str,
    reading: Reading,
    scores: dict[str, float],
    artifacts: Sequence[tuple[Box, str]],
) -> MadePicture:
    # A reply names one artifact: the planted one, if there is one.
    box, kind = artifacts[0] if artifacts else (None, "")
    truth = Truth(reading, scores, box, kind)
    return MadePicture(pixels, caption, source, truth, tuple(b for b, _ in artifacts))
