"""Scenes: the places of coloured shapes as batched tensors, sampled to satisfy specs.

Everything is tensor arithmetic on one device, so a training loop can make scenes on its GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from tts_verifier.shapes.grammar import Spec
from tts_verifier.shapes.vocabulary import COLOURS, RELATIONS, SHAPES, SIZE

SLOTS: Final = 5
"""The most objects in a scene: four that a caption can name and one planted by `flaws`."""

LAYOUTS: Final = 64
"""Random layouts tried for each scene; the one that breaks the rules least is taken."""

RELATION_CLEAR: Final = 20.0
"""Least distance in pixels between related centres along the axis of their relation.

It is twice `grammar.RELATION_MARGIN`, so no image is a borderline case.
"""

RADII: Final = {1: (16.0, 32.0), 2: (14.0, 25.0), 3: (12.0, 20.0), 4: (11.0, 17.0), 5: (10.0, 15.0)}
"""Number of objects in the scene -> smallest and largest radius in pixels."""

TILT: Final = 0.2
"""Largest rotation of an object either way, in radians."""

NO_OBJECT: Final = -1
"""The shape of an empty slot."""
ANY_COLOUR: Final = -2
"""The colour of an object whose colour the spec leaves open."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """B scenes of up to K = `SLOTS` objects; later slots are painted over earlier ones."""

    shape: Tensor
    """(B, K) int64, index into SHAPES; -1 = no object."""
    colour: Tensor
    """(B, K) int64, index into COLOURS."""
    centre: Tensor
    """(B, K, 2) float32, (x, y) in pixels."""
    radius: Tensor
    """(B, K) float32, in pixels."""
    angle: Tensor
    """(B, K) float32, rotation in radians."""
    background: Tensor
    """(B, 2, 3) float32, sRGB in [0, 1] of the top edge and of the bottom edge."""

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def present(self) -> Tensor:
        """(B, K) bool, which slots hold an object."""
        return self.shape >= 0


@dataclass(frozen=True, slots=True, eq=False)
class SpecTensors:
    """B specs as tensors, one slot for each object to show."""

    shape: Tensor
    """(B, K) int64, index into SHAPES; -1 = no object."""
    colour: Tensor
    """(B, K) int64, index into COLOURS; -2 = any colour."""
    relation: Tensor
    """(B,) int64, index into RELATIONS; -1 = none."""


def encode(specs: Sequence[Spec], device: torch.device | str = "cpu") -> SpecTensors:
    """Lists the objects of each spec as tensors on `device`."""
    colours = list(COLOURS)
    shape = torch.full((len(specs), SLOTS), NO_OBJECT)
    colour = torch.full((len(specs), SLOTS), ANY_COLOUR)
    relation = torch.full((len(specs),), -1)
    for i, spec in enumerate(specs):
        nouns = list(spec.nouns) if len(spec.nouns) > 1 else list(spec.nouns) * spec.count
        for k, noun in enumerate(nouns):
            shape[i, k] = SHAPES.index(noun.shape)
            colour[i, k] = ANY_COLOUR if noun.colour is None else colours.index(noun.colour)
        relation[i] = -1 if spec.relation is None else RELATIONS.index(spec.relation)
    return SpecTensors(shape.to(device), colour.to(device), relation.to(device))


def sample_scenes(
    specs: Sequence[Spec] | SpecTensors, generator: torch.Generator, *, gap: float = 2.0
) -> Scenes:
    """Samples one scene for each spec, on the generator's device.

    Open colours and the order of painting are random.

    Args:
        specs: B of them.
        generator: the only source of randomness.
        gap: pixels that objects keep apart, roughly: at 2, thin parts may overlap a little.
    """
    device = generator.device
    requested = specs if isinstance(specs, SpecTensors) else encode(specs, device)
    count = len(requested.shape)
    shape, relation = requested.shape, requested.relation

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device)

    random_colour = torch.randint(len(COLOURS), shape.shape, generator=generator, device=device)
    # Objects of one kind share their colour, so an image of a counting caption has a single colour.
    one_kind = (shape == shape[:, :1]).all(1, keepdim=True)
    random_colour = torch.where(one_kind, random_colour[:, :1], random_colour)
    colour = torch.where(requested.colour < 0, random_colour, requested.colour)
    radius = _sample_radii(shape, uniform(count, SLOTS))
    centre = _best_layout(shape, relation, radius, uniform(count, LAYOUTS, SLOTS, 2), gap)
    angle = (uniform(count, SLOTS) * 2 - 1) * TILT
    scenes = Scenes(shape, colour, centre, radius, angle, _background_colours(uniform(count, 7)))
    return _shuffle_slots(scenes, uniform(count, SLOTS))


def _sample_radii(shape: Tensor, u: Tensor) -> Tensor:
    """Picks radii between the limits for the number of objects: u (B, K) -> pixels (B, K)."""
    # An empty scene, from which the only object was removed, gets radii that are never used.
    number = (shape >= 0).sum(1).clamp(min=1)
    low = torch.tensor([RADII[n][0] for n in sorted(RADII)], device=u.device)[number - 1]
    high = torch.tensor([RADII[n][1] for n in sorted(RADII)], device=u.device)[number - 1]
    return low[:, None] + u * (high - low)[:, None]


def _best_layout(shape: Tensor, relation: Tensor, radius: Tensor, u: Tensor, gap: float) -> Tensor:
    """Picks the best of random layouts: u (B, LAYOUTS, K, 2) in [0, 1) -> centres (B, K, 2)."""
    # Objects stay three pixels off the border, which readers take for background.
    margin = (radius + 3)[:, None, :, None]
    centre = margin + u * (SIZE - 2 * margin)
    penalty = _overlap_penalty(shape, radius, centre, gap)
    # A pixel off the relation counts as four pixels of overlap: the caption must come true.
    penalty = penalty + torch.where(
        relation[:, None] >= 0, _relation_penalty(relation, centre) * 4, 0.0
    )
    best = penalty.argmin(1)
    return centre[torch.arange(len(centre), device=u.device), best]


def _overlap_penalty(shape: Tensor, radius: Tensor, centre: Tensor, gap: float) -> Tensor:
    """Returns by how many pixels objects are too close: (B, LAYOUTS)."""
    present = shape >= 0
    between = centre[:, :, :, None] - centre[:, :, None]
    # 0.92 is the extent of a circle in `renderer`: circles keep exactly the gap.
    apart = 0.92 * (radius[:, :, None] + radius[:, None]) + gap
    both = present[:, :, None] & present[:, None]
    each_pair_once = torch.ones_like(both[0]).triu(1)
    short = (apart[:, None] - between.norm(dim=-1)).clamp(min=0) * (both & each_pair_once)[:, None]
    penalty: Tensor = short.sum((2, 3))
    return penalty


def _relation_penalty(relation: Tensor, centre: Tensor) -> Tensor:
    """Returns by how many pixels the first two objects miss their relation: (B, LAYOUTS).

    They must be `RELATION_CLEAR` apart along its axis and clearly less far apart across it:
    otherwise the other axis would describe the image as well.
    """
    offset = centre[:, :, 0] - centre[:, :, 1]
    sign = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1]], device=centre.device)  # RELATIONS
    along = (offset * sign[relation.clamp(min=0)][:, None]).sum(-1)
    # The smaller of both distances. If that is `along` itself, it exceeds 0.7 of itself and counts.
    across = offset.abs().amin(-1)
    return (RELATION_CLEAR - along).clamp(min=0) + (across - 0.7 * along).clamp(min=0)


def _background_colours(u: Tensor) -> Tensor:
    """Picks two similar pale colours for each scene: u (B, 7) -> sRGB (B, 2, 3)."""
    light = 0.80 + 0.17 * u[:, :1]
    top = light + 0.06 * (u[:, 1:4] - 0.5)
    bottom = top + 0.08 * (u[:, 4:7] - 0.5)
    return torch.stack([top, bottom], 1).clamp(0, 1)


def _shuffle_slots(scenes: Scenes, u: Tensor) -> Scenes:
    """Reorders the slots, which decides who is painted over whom; empty slots come last."""
    # u is below 1, so adding 1 puts the empty slots last.
    order = (u + (~scenes.present).float()).argsort(1)

    def reorder(values: Tensor) -> Tensor:
        return values.gather(1, order)

    return replace(
        scenes,
        shape=reorder(scenes.shape),
        colour=reorder(scenes.colour),
        centre=scenes.centre.gather(1, order[..., None].expand(-1, -1, 2)),
        radius=reorder(scenes.radius),
        angle=reorder(scenes.angle),
    )
