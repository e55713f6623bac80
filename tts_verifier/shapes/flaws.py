"""Pictures with planted flaws, and the truth about them.

A misalignment changes what is drawn before it is rendered: a wrong, missing or extra object,
a wrong colour or shape, exchanged colours, a relation that does not hold, a wrong count. The
truth is then what `reading.compare` says of the things that were really drawn. Artifacts are
planted into the pixels afterwards (`artifacts.plant_artifacts`).

Scores, each in [0, 1]:

- semantic alignment: the weighted share of constraints that hold (`reading.WEIGHTS`)
- plausibility: 1, or 0.8 - 0.7 * severity when an artifact was planted
- aesthetics: 0.35 + 0.4 * balance + 0.25 * size - 0.3 * severity, with balance 1 when what is
  painted is centred and 0 when its centre of mass is 40 pixels off or nothing is painted, and
  size the painted share of the picture over 15 %, at most 1
- overall: 0.5 alignment + 0.3 plausibility + 0.2 aesthetics
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tts_verifier.shapes.artifacts import Planted, plant_artifacts, saliency
from tts_verifier.shapes.grammar import Noun, Spec
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.shapes.renderer import boxes, coverage, paint
from tts_verifier.shapes.scene import Scenes, sample_scenes
from tts_verifier.shapes.vocabulary import COLOURS, RELATIONS, SHAPES, SIZE

SCORES: Final = ("semantic_alignment", "aesthetics", "plausibility", "overall")
Drawn = tuple[list[Noun], str | None]
"""Objects to draw, and the relation of the first to the second."""


@dataclass(frozen=True, slots=True, eq=False)
class Flawed:
    """B pictures with what is wrong in them.

    `images`: (B, 3, 128, 128) in [0, 1]. `readings`: the truth about alignment.
    `misalignment`: (B, 128, 128) in [0, 1]. `artifacts`: the planted ones.
    `scores`: (B, 4), columns as SCORES.
    """

    specs: list[Spec]
    images: Tensor
    scenes: Scenes
    readings: list[Reading]
    misalignment: Tensor
    artifacts: Planted
    scores: Tensor


def plant(
    specs: Sequence[Spec],
    generator: torch.Generator,
    *,
    misalignment: float = 0.5,
    artifact: float = 0.4,
) -> Flawed:
    """Draws one picture for each spec, with flaws.

    Args:
        specs: what the captions ask for.
        generator: decides everything; its device is where pictures are made.
        misalignment: the share of pictures with one or two misalignments.
        artifact: the share with an artifact, independent of the former.
    """
    scenes = misaligned_scenes(specs, generator, share=misalignment)
    cover = coverage(scenes)
    planted = plant_artifacts(paint(scenes, cover), generator, share=artifact)
    readings = [compare(s, t) for s, t in zip(specs, things(scenes, boxes(cover)), strict=True)]
    maps = torch.from_numpy(np.stack([r.misalignment for r in readings])).to(generator.device)
    alignment = torch.tensor([r.score for r in readings], device=generator.device)
    scores = score(alignment, planted)
    return Flawed(list(specs), planted.images, scenes, readings, maps, planted, scores)


def misaligned_scenes(specs: Sequence[Spec], generator: torch.Generator, *, share: float) -> Scenes:
    """Samples one scene for each spec, a share of them with one or two misalignments."""
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    rng = random.Random(int(seed))
    drawn = [_flawed(spec, rng) if rng.random() < share else _asked(spec) for spec in specs]
    return sample_scenes([_as_spec(d) for d in drawn], generator)


def score(alignment: Tensor, planted: Planted) -> Tensor:
    """Returns (B, 4), columns as SCORES, by the formulas above."""
    severe = planted.severity
    plausible = torch.where(planted.kind >= 0, 0.8 - 0.7 * severe, 1.0)
    pleasant = (composition(planted.images) - 0.3 * severe).clamp(0, 1)
    overall = 0.5 * alignment + 0.3 * plausible + 0.2 * pleasant
    return torch.stack([alignment, pleasant, plausible, overall], 1)


def composition(images: Tensor) -> Tensor:
    """Returns the part of aesthetics that the layout decides: (B,) in [0.35, 1]."""
    painted = (saliency(images) > 0.2).float()
    total = painted.sum((1, 2))
    at = torch.arange(SIZE, device=images.device) + 0.5 - SIZE / 2
    x = (painted.sum(1) * at).sum(1) / total.clamp(min=1)
    y = (painted.sum(2) * at).sum(1) / total.clamp(min=1)
    balance = (1 - torch.hypot(x, y) / 40).clamp(0, 1) * (total > 0)
    size = (total / (0.15 * SIZE * SIZE)).clamp(max=1)
    return 0.35 + 0.4 * balance + 0.25 * size


def things(scenes: Scenes, box: Tensor) -> list[list[Thing]]:
    """Lists what was drawn in each scene; `box`: (B, K, 4), as `render.boxes` gives them."""
    colours = list(COLOURS)
    shape, colour = scenes.shape.tolist(), scenes.colour.tolist()
    centre, corners = scenes.centre.tolist(), box.tolist()
    return [
        [
            Thing(
                SHAPES[shape[i][k]],
                colours[colour[i][k]],
                (centre[i][k][0], centre[i][k][1]),
                (corners[i][k][0], corners[i][k][1], corners[i][k][2], corners[i][k][3]),
            )
            for k in range(len(shape[i]))
            if shape[i][k] >= 0
        ]
        for i in range(len(shape))
    ]


def _asked(spec: Spec) -> Drawn:
    nouns = list(spec.nouns) * spec.count
    return nouns, spec.relation


def _as_spec(drawn: Drawn) -> Spec:
    """Wraps a list of objects so that `sample_scenes` can place them."""
    nouns, relation = drawn
    return Spec("drawn", tuple(nouns), relation=relation if len(nouns) > 1 else None)


def _flawed(spec: Spec, rng: random.Random) -> Drawn:
    """Applies one misalignment that suits the spec, sometimes two."""
    drawn = _asked(spec)
    for _ in range(1 + (rng.random() < 0.2)):
        drawn = rng.choice(_suitable(spec, drawn))(spec, drawn, rng)
    return drawn


Change = Callable[[Spec, Drawn, random.Random], Drawn]


def _suitable(spec: Spec, drawn: Drawn) -> list[Change]:
    nouns, relation = drawn
    changes: list[Change] = [_extra]
    if nouns:
        changes += [_missing, _wrong_shape, _wrong_shape]
    if any(noun.colour for noun in nouns):
        changes += [_wrong_colour, _wrong_colour]
    if spec.category == "counting":
        changes += [_miscount] * 4
    if len(nouns) == 2 and relation is not None:
        changes += [_wrong_relation] * 4
    if len(nouns) == 2 and all(noun.colour for noun in nouns):
        changes += [_exchanged] * 2
    return changes


def _extra(spec: Spec, drawn: Drawn, rng: random.Random) -> Drawn:
    nouns, relation = drawn
    noun = Noun(rng.choice(SHAPES), rng.choice(list(COLOURS)))
    return ([*nouns, noun] if len(nouns) < 5 else nouns), relation


def _missing(spec: Spec, drawn: Drawn, rng: random.Random) -> Drawn:
    nouns, _ = drawn
    gone = rng.randrange(len(nouns))
    return [noun for i, noun in enumerate(nouns) if i != gone], None


def _wrong_shape(spec: Spec, drawn: Drawn, rng: random.Random) -> Drawn:
    nouns, relation = drawn
    index = rng.randrange(len(nouns))
    asked = {noun.shape for noun in spec.nouns}
    shape = rng.choice([s for s in SHAPES if s not in asked])
    return _replaced(nouns, index, Noun(shape, nouns[index].colour)), relation


def _wrong_colour(spec: Spec, drawn: Drawn, rng: random.Random) -> Drawn:
    nouns, relation = drawn
    index = rng.choice([i for i, noun in enumerate(nouns) if noun.colour])
    colour = rng.choice([c for c in COLOURS if c != nouns[index].colour])
    return _replaced(nouns, index, Noun(nouns[index].shape, colour)), relation


def _miscount(spec: Spec, drawn: Drawn, rng: random.Random) -> Drawn:
    counts = [n for n in range(1, 6) if n != spec.count and abs(n - spec.count) <= 2]
    return [spec.nouns[0]] * rng.choice(counts), drawn[1]


def _wrong_relation(spec: Spec, drawn: Drawn, rng: random.Random) -> Drawn:
    nouns, relation = drawn
    return nouns, rng.choice([r for r in RELATIONS if r != relation])


def _exchanged(spec: Spec, drawn: Drawn, rng: random.Random) -> Drawn:
    nouns, relation = drawn
    a, b = nouns
    return [Noun(a.shape, b.colour), Noun(b.shape, a.colour)], relation


def _replaced(nouns: list[Noun], index: int, noun: Noun) -> list[Noun]:
    return [noun if i == index else old for i, old in enumerate(nouns)]
