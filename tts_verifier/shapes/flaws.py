"""Images with planted flaws, and the truth about them.

A misalignment changes the objects before they are rendered: a wrong, missing or extra object,
a wrong colour or shape, exchanged colours, a relation that does not hold, a wrong count. What
`constraints.compare` says of the rendered objects is then the truth. Artifacts are planted
into the pixels afterwards (`artifacts.plant_artifacts`).

The four scores, each in [0, 1]:

- semantic alignment: the weighted share of constraints that hold (`constraints.WEIGHTS`)
- plausibility: 1, or 0.8 - 0.7 * severity with a planted artifact
- aesthetics: 0.35 + 0.4 * balance + 0.25 * size - 0.3 * severity. Balance is 1 when the
  painted pixels are centred; it is 0 when their centre of mass is 40 pixels off or nothing is
  painted. Size is the painted share of the image divided by 15 %, at most 1.
- overall: 0.5 * alignment + 0.3 * plausibility + 0.2 * aesthetics
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tts_verifier.shapes.artifacts import (
    PAINTED_SALIENCY,
    PlantedArtifacts,
    plant_artifacts,
    saliency,
)
from tts_verifier.shapes.grammar import Noun, Spec
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.shapes.renderer import bounding_boxes, coverage, paint
from tts_verifier.shapes.scene import SLOTS, Scenes, sample_scenes
from tts_verifier.shapes.vocabulary import COLOURS, RELATIONS, SHAPES, SIZE

ARTIFACT_SHARE: Final = 0.4
"""Share of images with a planted artifact, unless another one is asked for."""

SceneContents = tuple[list[Noun], str | None]
"""The objects to render, and the relation of the first to the second."""


@dataclass(frozen=True, slots=True, eq=False)
class FlawedImages:
    """B rendered images with flaws, and the truth about them."""

    specs: list[Spec]
    """What the captions ask for, which the images may contradict."""
    images: Tensor
    """float32 (B, 3, 128, 128), sRGB in [0, 1]."""
    scenes: Scenes
    """What was rendered, before artifacts."""
    readings: list[Reading]
    """The truth about alignment."""
    misalignment: Tensor
    """float32 (B, 128, 128) in [0, 1], the regions that contradict the caption."""
    artifacts: PlantedArtifacts
    """The planted artifacts."""
    scores: Tensor
    """float32 (B, 4), columns as SCORE_NAMES."""


def render_flawed(
    specs: Sequence[Spec],
    generator: torch.Generator,
    *,
    misalignment: float = 0.5,
    artifact: float = ARTIFACT_SHARE,
) -> FlawedImages:
    """Renders one image for each spec, with flaws.

    Args:
        specs: what the captions ask for.
        generator: the only source of randomness; images are made on its device.
        misalignment: the share of images with one or two misalignments.
        artifact: the share of images with an artifact, independent of the former.
    """
    scenes = misaligned_scenes(specs, generator, share=misalignment)
    cover = coverage(scenes)
    planted = plant_artifacts(paint(scenes, cover), generator, share=artifact)
    things = scene_things(scenes, bounding_boxes(cover))
    readings = [compare(s, t) for s, t in zip(specs, things, strict=True)]
    maps = torch.from_numpy(np.stack([r.misalignment for r in readings])).to(generator.device)
    alignment = torch.tensor([r.score for r in readings], device=generator.device)
    scores = score_columns(alignment, planted)
    return FlawedImages(list(specs), planted.images, scenes, readings, maps, planted, scores)


def misaligned_scenes(specs: Sequence[Spec], generator: torch.Generator, *, share: float) -> Scenes:
    """Samples one scene for each spec, a share of them with one or two misalignments."""
    # Misalignments are chosen in Python, by a random source that `generator` seeds.
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    rng = random.Random(int(seed))
    contents = [
        _misaligned(spec, rng) if rng.random() < share else _contents_of(spec) for spec in specs
    ]
    return sample_scenes([_as_spec(c) for c in contents], generator)


def score_columns(alignment: Tensor, planted: PlantedArtifacts) -> Tensor:
    """Scores images by the formulas in the module's docstring.

    Args:
        alignment: float32 (B,) in [0, 1].
        planted: the B images with their artifacts.

    Returns:
        float32 (B, 4), columns as SCORE_NAMES.
    """
    severity = planted.severity
    plausibility = torch.where(planted.kind >= 0, 0.8 - 0.7 * severity, 1.0)
    aesthetics = (composition(planted.images) - 0.3 * severity).clamp(0, 1)
    overall = 0.5 * alignment + 0.3 * plausibility + 0.2 * aesthetics
    return torch.stack([alignment, aesthetics, plausibility, overall], 1)


def composition(images: Tensor) -> Tensor:
    """Returns the part of aesthetics that depends on the layout: (B,) in [0.35, 1]."""
    painted = (saliency(images) > PAINTED_SALIENCY).float()
    total = painted.sum((1, 2))
    offset = torch.arange(SIZE, device=images.device) + 0.5 - SIZE / 2
    # The centre of mass, seen from the middle; the clamp serves images with nothing painted.
    x = (painted.sum(1) * offset).sum(1) / total.clamp(min=1)
    y = (painted.sum(2) * offset).sum(1) / total.clamp(min=1)
    balance = (1 - torch.hypot(x, y) / 40).clamp(0, 1) * (total > 0)
    size = (total / (0.15 * SIZE * SIZE)).clamp(max=1)
    return 0.35 + 0.4 * balance + 0.25 * size


def scene_things(scenes: Scenes, boxes: Tensor) -> list[list[Thing]]:
    """Lists the objects of each scene as a perfect reader would find them.

    Args:
        scenes: B of them.
        boxes: (B, K, 4), xyxy in pixels, as `renderer.bounding_boxes` returns them.
    """
    # One transfer for each tensor: reading single elements would wait for a GPU every time.
    colours = list(COLOURS)
    shape, colour = scenes.shape.tolist(), scenes.colour.tolist()
    centre, corners = scenes.centre.tolist(), boxes.tolist()
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


# -- misalignments -------------------------------------------------------------------------


def _contents_of(spec: Spec) -> SceneContents:
    return list(spec.nouns) * spec.count, spec.relation


def _as_spec(contents: SceneContents) -> Spec:
    """Wraps contents as a spec, because `sample_scenes` places the objects of specs."""
    nouns, relation = contents
    return Spec("flawed", tuple(nouns), relation=relation if len(nouns) > 1 else None)


def _misaligned(spec: Spec, rng: random.Random) -> SceneContents:
    """Applies one misalignment that suits the spec, sometimes two."""
    contents = _contents_of(spec)
    for _ in range(1 + (rng.random() < 0.2)):
        contents = rng.choice(_suitable_changes(spec, contents))(spec, contents, rng)
    return contents


Change = Callable[[Spec, SceneContents, random.Random], SceneContents]


def _suitable_changes(spec: Spec, contents: SceneContents) -> list[Change]:
    """Lists the changes that would contradict the caption; repeated ones are more likely."""
    nouns, relation = contents
    changes: list[Change] = [_add_object]
    if nouns:
        changes += [_remove_object, _change_shape, _change_shape]
    if any(noun.colour for noun in nouns):
        changes += [_change_colour, _change_colour]
    if spec.category == "counting":
        changes += [_change_count] * 4
    if len(nouns) == 2 and relation is not None:
        changes += [_change_relation] * 4
    if len(nouns) == 2 and all(noun.colour for noun in nouns):
        changes += [_exchange_colours] * 2
    return changes


def _add_object(spec: Spec, contents: SceneContents, rng: random.Random) -> SceneContents:
    nouns, relation = contents
    noun = Noun(rng.choice(SHAPES), rng.choice(list(COLOURS)))
    return ([*nouns, noun] if len(nouns) < SLOTS else nouns), relation


def _remove_object(spec: Spec, contents: SceneContents, rng: random.Random) -> SceneContents:
    nouns, _ = contents
    removed = rng.randrange(len(nouns))
    # Without one of its objects a relation cannot be placed.
    return [noun for i, noun in enumerate(nouns) if i != removed], None


def _change_shape(spec: Spec, contents: SceneContents, rng: random.Random) -> SceneContents:
    nouns, relation = contents
    index = rng.randrange(len(nouns))
    named = {noun.shape for noun in spec.nouns}
    # No shape that the caption names, so that the changed object fits none of its nouns.
    shape = rng.choice([s for s in SHAPES if s not in named])
    return _with_noun(nouns, index, Noun(shape, nouns[index].colour)), relation


def _change_colour(spec: Spec, contents: SceneContents, rng: random.Random) -> SceneContents:
    nouns, relation = contents
    index = rng.choice([i for i, noun in enumerate(nouns) if noun.colour])
    colour = rng.choice([c for c in COLOURS if c != nouns[index].colour])
    return _with_noun(nouns, index, Noun(nouns[index].shape, colour)), relation


def _change_count(spec: Spec, contents: SceneContents, rng: random.Random) -> SceneContents:
    counts = [n for n in range(1, SLOTS + 1) if n != spec.count and abs(n - spec.count) <= 2]
    return [spec.nouns[0]] * rng.choice(counts), contents[1]


def _change_relation(spec: Spec, contents: SceneContents, rng: random.Random) -> SceneContents:
    nouns, relation = contents
    return nouns, rng.choice([r for r in RELATIONS if r != relation])


def _exchange_colours(spec: Spec, contents: SceneContents, rng: random.Random) -> SceneContents:
    nouns, relation = contents
    a, b = nouns
    return [Noun(a.shape, b.colour), Noun(b.shape, a.colour)], relation


def _with_noun(nouns: list[Noun], index: int, noun: Noun) -> list[Noun]:
    return [noun if i == index else old for i, old in enumerate(nouns)]
