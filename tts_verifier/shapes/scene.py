"""Scenes: where coloured shapes stand, as batched tensors, sampled to satisfy specs.

Everything is tensor arithmetic on one device, so that scenes are made beside a training loop
on a GPU as well as here.
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
"""Most objects in a scene: four asked for, one planted."""

LAYOUTS: Final = 64
"""Random layouts tried for each scene; the one that breaks the fewest rules is taken."""

RELATION_CLEAR: Final = 20.0
"""Least distance in pixels between related centres along their axis, so that no picture
stands between holding and not holding (`grammar.RELATION_MARGIN` is half of it)."""

RADII: Final = {1: (16.0, 32.0), 2: (14.0, 25.0), 3: (12.0, 20.0), 4: (11.0, 17.0), 5: (10.0, 15.0)}
"""Objects in the scene -> smallest and largest radius in pixels."""

TILT: Final = 0.2
"""Largest rotation of an object, radians."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """B scenes of up to K = `SLOTS` objects; later slots are painted over earlier ones.

    `shape`, `colour`: (B, K) int64 indices into SHAPES and COLOURS, shape -1 = no object.
    `centre`: (B, K, 2), (x, y) in pixels. `radius`, `angle`: (B, K), pixels and radians.
    `background`: (B, 2, 3), sRGB in [0, 1] of the top and of the bottom edge.
    """

    shape: Tensor
    colour: Tensor
    centre: Tensor
    radius: Tensor
    angle: Tensor
    background: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def present(self) -> Tensor:
        """(B, K) bool."""
        return self.shape >= 0

    def at(self, rows: Tensor | slice) -> Scenes:
        """Returns the scenes of these rows."""
        parts = (self.shape, self.colour, self.centre, self.radius, self.angle, self.background)
        return Scenes(*(p[rows] for p in parts))


@dataclass(frozen=True, slots=True, eq=False)
class SpecTensors:
    """Specs as tensors: `shape`, `colour` (B, K) with -1 = no object and -2 = any colour;
    `relation` (B,) index into RELATIONS, -1 = none."""

    shape: Tensor
    colour: Tensor
    relation: Tensor


def encode(specs: Sequence[Spec], device: torch.device | str = "cpu") -> SpecTensors:
    """Lists the objects that each spec asks for."""
    colours = list(COLOURS)
    shape = torch.full((len(specs), SLOTS), -1)
    colour = torch.full((len(specs), SLOTS), -2)
    relation = torch.full((len(specs),), -1)
    for i, spec in enumerate(specs):
        nouns = list(spec.nouns) if len(spec.nouns) > 1 else list(spec.nouns) * spec.count
        for k, noun in enumerate(nouns):
            shape[i, k] = SHAPES.index(noun.shape)
            colour[i, k] = -2 if noun.colour is None else colours.index(noun.colour)
        relation[i] = -1 if spec.relation is None else RELATIONS.index(spec.relation)
    return SpecTensors(shape.to(device), colour.to(device), relation.to(device))


def sample_scenes(
    specs: Sequence[Spec] | SpecTensors, generator: torch.Generator, *, gap: float = 2.0
) -> Scenes:
    """Samples one scene for each spec, on the generator's device.

    Objects keep about `gap` pixels apart (at 2, thin parts may overlap a little), colours left
    open are drawn at random, the order of painting is random.
    """
    device = generator.device
    asked = specs if isinstance(specs, SpecTensors) else encode(specs, device)
    count = len(asked.shape)
    shape, relation = asked.shape, asked.relation

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device)

    any_colour = torch.randint(len(COLOURS), shape.shape, generator=generator, device=device)
    same = (shape == shape[:, :1]).all(1, keepdim=True)
    any_colour = torch.where(same, any_colour[:, :1], any_colour)
    colour = torch.where(asked.colour < 0, any_colour, asked.colour)
    radius = _radii(shape, uniform(count, SLOTS))
    centre = _layout(shape, relation, radius, uniform(count, LAYOUTS, SLOTS, 2), gap)
    angle = (uniform(count, SLOTS) * 2 - 1) * TILT
    scenes = Scenes(shape, colour, centre, radius, angle, _backgrounds(uniform(count, 7)))
    return _shuffled(scenes, uniform(count, SLOTS))


def _radii(shape: Tensor, u: Tensor) -> Tensor:
    number = (shape >= 0).sum(1).clamp(min=1)
    low = torch.tensor([RADII[n][0] for n in sorted(RADII)], device=u.device)[number - 1]
    high = torch.tensor([RADII[n][1] for n in sorted(RADII)], device=u.device)[number - 1]
    return low[:, None] + u * (high - low)[:, None]


def _layout(shape: Tensor, relation: Tensor, radius: Tensor, u: Tensor, gap: float) -> Tensor:
    """Picks the best of random layouts: u (B, LAYOUTS, K, 2) in [0, 1) -> centres (B, K, 2)."""
    room = (radius + 3)[:, None, :, None]
    centre = room + u * (SIZE - 2 * room)
    present = shape >= 0
    between = centre[:, :, :, None] - centre[:, :, None]
    apart = 0.92 * (radius[:, :, None] + radius[:, None]) + gap
    both = present[:, :, None] & present[:, None]
    upper = torch.ones_like(both[0]).triu(1)
    short = (apart[:, None] - between.norm(dim=-1)).clamp(min=0) * (both & upper)[:, None]
    broken = short.sum((2, 3))
    first = centre[:, :, 0] - centre[:, :, 1]
    sign = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1]], device=u.device)
    along = (first * sign[relation.clamp(min=0)][:, None]).sum(-1)
    across = first.abs().amin(-1)
    wrong = (RELATION_CLEAR - along).clamp(min=0) + (across - 0.7 * along).clamp(min=0)
    broken = broken + torch.where(relation[:, None] >= 0, wrong * 4, 0.0)
    best = broken.argmin(1)
    return centre[torch.arange(len(centre), device=u.device), best]


def _backgrounds(u: Tensor) -> Tensor:
    """u (B, 7) -> two pale colours a scene."""
    light = 0.80 + 0.17 * u[:, :1]
    top = light + 0.06 * (u[:, 1:4] - 0.5)
    bottom = top + 0.08 * (u[:, 4:7] - 0.5)
    return torch.stack([top, bottom], 1).clamp(0, 1)


def _shuffled(scenes: Scenes, u: Tensor) -> Scenes:
    """Reorders the slots, and with them who is painted over whom; absent ones come last."""
    turn = (u + (~scenes.present).float()).argsort(1)

    def pick(x: Tensor) -> Tensor:
        return x.gather(1, turn)

    centre = scenes.centre.gather(1, turn[..., None].expand(-1, -1, 2))
    return replace(
        scenes,
        shape=pick(scenes.shape),
        colour=pick(scenes.colour),
        centre=centre,
        radius=pick(scenes.radius),
        angle=pick(scenes.angle),
    )
