"""Planted artifacts with their ground truth, on renders and on a generator's samples alike.

Each picture that gets one gets it where something is painted (saliency is the distance from
the background's colour), inside a soft disc. Five kinds: a smear (dragged pixels), a noise
patch, a broken outline (bites out of what is there), bleeding colours (colour leaking past
the outline) and melting (a local warp).

The map is what visibly changed: 1 where a pixel moved by more than `VISIBLE` in any channel,
softened over a few pixels. Severity in [0, 1] is the mean of two shares: changed area of
`FULL_AREA` pixels, and mean change there of `FULL_CHANGE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pad

from tts_verifier.shapes.vocabulary import SIZE

KINDS: Final = ("smear", "noise", "broken", "bleeding", "melted")
PATCH: Final = 56
"""Side of the square that an artifact may change, pixels."""
VISIBLE: Final = 0.08
FULL_AREA: Final = 700.0
FULL_CHANGE: Final = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """Pictures with artifacts.

    `images`: (B, 3, 128, 128) in [0, 1]. `map`: (B, 128, 128) in [0, 1]. `box`: (B, 4) xyxy,
    zeros where nothing changed. `kind`: (B,) index into KINDS, -1 = none planted.
    `severity`: (B,) in [0, 1].
    """

    images: Tensor
    map: Tensor
    box: Tensor
    kind: Tensor
    severity: Tensor


def plant_artifacts(
    images: Tensor, generator: torch.Generator, *, share: float | Tensor = 0.5
) -> Planted:
    """Plants one artifact into a share of the pictures.

    Args:
        images: (B, 3, 128, 128), sRGB in [0, 1], on the generator's device.
        generator: decides everything.
        share: probability of an artifact, one number or (B,).
    """
    count, device = len(images), images.device

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device)

    chosen = uniform(count) < share
    kind = torch.randint(len(KINDS), (count,), generator=generator, device=device)
    corner = _corners(images, generator)
    patch = _cut(images, corner)
    damaged = patch.clone()
    for index, damage in enumerate((_smear, _noise, _break, _bleed, _melt)):
        rows = torch.nonzero(chosen & (kind == index)).flatten()
        if len(rows):
            damaged[rows] = damage(patch[rows], uniform(len(rows), 8), generator)
    soft = _disc(uniform(count), device)
    damaged = torch.lerp(patch, damaged, soft).clamp(0, 1)
    change = (damaged - patch).abs().amax(1)
    result = _paste(images, corner, damaged)
    seen = (change > VISIBLE).float()
    area, total = seen.sum((1, 2)), (change * seen).sum((1, 2))
    strength = total / area.clamp(min=1)
    severity = 0.5 * (area / FULL_AREA).clamp(max=1) + 0.5 * (strength / FULL_CHANGE).clamp(max=1)
    on = area > 0
    marks = _paste(torch.zeros_like(images[:, :1]), corner, _soften(seen)[:, None])[:, 0]
    box = _boxes(seen, corner) * on[:, None]
    kind = torch.where(chosen & on, kind, -1)
    return Planted(result, marks, box, kind, severity * on)


def background(images: Tensor) -> Tensor:
    """Estimates each picture's background from its border: (B, 3, 1, 1), the median colour."""
    edge = torch.cat(
        [images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1
    )
    return edge.median(-1).values[..., None, None]


def saliency(images: Tensor) -> Tensor:
    """Returns how far each pixel is from the background's colour: (B, 128, 128) in [0, 1]."""
    return (images - background(images)).abs().amax(1)


def _corners(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draws a patch's top left (x, y) for each picture, its middle on something painted."""
    coarse = avg_pool2d((saliency(images) > 0.2).float()[:, None], 8).flatten(1) + 1e-4
    cell = torch.multinomial(coarse, 1, generator=generator).squeeze(1)
    side = SIZE // 8
    middle = torch.stack([cell % side, cell // side], 1) * 8 + 4
    return (middle - PATCH // 2).clamp(0, SIZE - PATCH)


def _index(corner: Tensor) -> Tensor:
    """Returns flat pixel indices (B, PATCH * PATCH) of the patches."""
    step = torch.arange(PATCH, device=corner.device)
    rows = (corner[:, 1:] + step)[:, :, None] * SIZE
    return (rows + (corner[:, :1] + step)[:, None, :]).flatten(1)


def _cut(images: Tensor, corner: Tensor) -> Tensor:
    index = _index(corner)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(len(images), -1, PATCH, PATCH)


def _paste(images: Tensor, corner: Tensor, patch: Tensor) -> Tensor:
    index = _index(corner)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).scatter(2, index, patch.flatten(2)).view_as(images)


def _disc(u: Tensor, device: torch.device) -> Tensor:
    """A soft disc in the middle of the patch, radius 12 to 22 pixels: (B, 1, PATCH, PATCH)."""
    at = torch.arange(PATCH, device=device) + 0.5 - PATCH / 2
    distance = torch.hypot(at[:, None], at[None, :])
    radius = 12 + 10 * u[:, None, None]
    return ((radius - distance) / 4 + 0.5).clamp(0, 1)[:, None]


def _soften(seen: Tensor) -> Tensor:
    """Closes gaps between changed pixels and softens the rim: (B, h, w) -> the same."""
    return (2.5 * avg_pool2d(seen[:, None], 7, stride=1, padding=3)[:, 0]).clamp(max=1)


def _boxes(seen: Tensor, corner: Tensor) -> Tensor:
    index = torch.arange(PATCH, device=seen.device)
    spans = []
    for hit in (seen.amax(1) > 0, seen.amax(2) > 0):
        low = torch.where(hit, index, PATCH).amin(1)
        spans.append((low, torch.where(hit, index + 1, 0).amax(1)))
    (x1, x2), (y1, y2) = spans
    x, y = corner[:, 0], corner[:, 1]
    return torch.stack([x + x1, y + y1, x + x2, y + y2], 1).float()


def _moved(patch: Tensor, offset: Tensor) -> Tensor:
    """Samples a patch at offsets in pixels: offset (N, PATCH, PATCH, 2), (x, y)."""
    at = (torch.arange(PATCH, device=patch.device) + 0.5) * 2 / PATCH - 1
    rest = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)
    return grid_sample(
        patch, rest + offset * (2 / PATCH), padding_mode="border", align_corners=False
    )


def _smear(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Averages the patch along a line of 14 to 26 pixels."""
    angle, length = u[:, 0] * torch.pi, 14 + 12 * u[:, 1]
    way = torch.stack([angle.cos(), angle.sin()], 1) * length[:, None]
    steps = torch.linspace(-0.5, 0.5, 7, device=patch.device)
    shifted = [_moved(patch, (way * s)[:, None, None].expand(-1, PATCH, PATCH, -1)) for s in steps]
    return torch.stack(shifted).mean(0)


def _noise(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Adds coloured blocks of 4 pixels."""
    size = (len(patch), 3, PATCH // 4, PATCH // 4)
    blocks = torch.rand(size, generator=generator, device=patch.device) - 0.5
    return patch + interpolate(blocks, scale_factor=4.0) * (0.7 + 0.6 * u[:, 0, None, None, None])


def _break(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Bites discs of 3 to 6 pixels out of what is there, filled with the palest colour near."""
    dots = torch.rand(len(patch), 7, 3, generator=generator, device=patch.device)
    at = torch.arange(PATCH, device=patch.device) + 0.5
    centre = PATCH * (0.2 + 0.6 * dots[..., :2])
    x = at[None, None, None, :] - centre[:, :, 0, None, None]
    y = at[None, None, :, None] - centre[:, :, 1, None, None]
    radius = 3 + 3 * dots[..., 2, None, None]
    bitten = (radius - torch.hypot(x, y) + 0.5).clamp(0, 1).amax(1)[:, None]
    pale = patch.sum(1).flatten(1).argmax(1)
    fill = patch.flatten(2).gather(2, pale[:, None, None].expand(-1, 3, 1))[..., None]
    return torch.lerp(patch, fill.expand_as(patch), bitten)


def _bleed(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Lets the darker colours leak out, in cloudy places."""
    wide = patch
    for _ in range(2):
        wide = avg_pool2d(pad(wide, (5, 5, 5, 5), mode="replicate"), 11, stride=1)
    leaked = torch.minimum(patch, wide - 0.15)
    cloud = torch.rand(len(patch), 1, 7, 7, generator=generator, device=patch.device)
    cloud = interpolate(cloud, size=(PATCH, PATCH), mode="bilinear", align_corners=False)
    return torch.lerp(patch, leaked, (cloud * 3 - 0.6).clamp(0, 1))


def _melt(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Warps by a smooth random field of 7 to 13 pixels."""
    field = torch.rand(len(patch), 2, 5, 5, generator=generator, device=patch.device) * 2 - 1
    field = interpolate(field, size=(PATCH, PATCH), mode="bicubic", align_corners=False)
    return _moved(patch, field.permute(0, 2, 3, 1) * (7 + 6 * u[:, 0, None, None, None]))
