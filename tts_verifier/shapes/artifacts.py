"""Planted artifacts with their ground truth, on renders and on a generator's samples alike.

An artifact lies inside a soft disc where something is painted, that is, where saliency (the
distance from the background's colour) is high. There are five kinds: a smear (dragged pixels), a
patch of noise, a broken outline (bites out of an object), bleeding colours (colour leaking past
the outline) and melting (a local warp).

The map marks visible changes: 1 where a pixel moved by more than `VISIBLE_CHANGE` in any
channel, softened over a few pixels. Severity in [0, 1] is the mean of two shares: the changed
area over `FULL_AREA` pixels, and the mean change there over `FULL_CHANGE`, each at most 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pad

from tts_verifier.shapes.vocabulary import SIZE

ARTIFACT_KINDS: Final = ("smear", "noise", "broken", "bleeding", "melted")
PATCH_SIDE: Final = 56
"""Side of the square that an artifact may change, in pixels."""
VISIBLE_CHANGE: Final = 0.08
"""Change of a channel (sRGB, 0 to 1) above which a pixel counts as changed."""
FULL_AREA: Final = 700.0
"""Number of changed pixels from which on a larger area is no more severe."""
FULL_CHANGE: Final = 0.4
"""Mean change (sRGB, 0 to 1) from which on a stronger change is no more severe."""
PAINTED_SALIENCY: Final = 0.2
"""Saliency above which a pixel counts as painted."""


@dataclass(frozen=True, slots=True, eq=False)
class PlantedArtifacts:
    """B images, some with an artifact, and where it is."""

    images: Tensor
    """float32 (B, 3, 128, 128), sRGB in [0, 1], artifacts included."""
    map: Tensor
    """float32 (B, 128, 128) in [0, 1], 1 = visibly changed."""
    box: Tensor
    """float32 (B, 4), xyxy in pixels around the change, zeros where nothing changed."""
    kind: Tensor
    """int64 (B,), index into ARTIFACT_KINDS; -1 = no artifact."""
    severity: Tensor
    """float32 (B,) in [0, 1], 0 = no artifact."""


def plant_artifacts(
    images: Tensor, generator: torch.Generator, *, share: float | Tensor = 0.5
) -> PlantedArtifacts:
    """Plants one artifact into a share of the images.

    Args:
        images: (B, 3, 128, 128), sRGB in [0, 1], on the generator's device.
        generator: the only source of randomness.
        share: probability of an artifact, one number or (B,).
    """
    count, device = len(images), images.device

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device)

    chosen = uniform(count) < share
    kind = torch.randint(len(ARTIFACT_KINDS), (count,), generator=generator, device=device)
    # Placed on painted pixels, because damage to plain background would hardly be visible.
    corner = _salient_corners(images, generator)
    patch = _cut_patches(images, corner)
    damaged = patch.clone()
    for index, damage in enumerate((_smear, _add_noise, _break, _bleed, _melt)):
        rows = torch.nonzero(chosen & (kind == index)).flatten()
        if len(rows):
            # Eight numbers for every kind, though no kind uses more than two: another count would
            # change the images of every seed.
            damaged[rows] = damage(patch[rows], uniform(len(rows), 8), generator)
    damaged = torch.lerp(patch, damaged, _soft_disc(uniform(count), device)).clamp(0, 1)
    change = (damaged - patch).abs().amax(1)
    changed = (change > VISIBLE_CHANGE).float()
    severity = _severity(change, changed)
    # A disc over the background may change nothing visible: then no artifact was planted.
    visible = changed.sum((1, 2)) > 0
    blank = torch.zeros_like(images[:, :1])
    return PlantedArtifacts(
        images=_paste_patches(images, corner, damaged),
        map=_paste_patches(blank, corner, _soften(changed)[:, None])[:, 0],
        box=_changed_boxes(changed, corner) * visible[:, None],
        kind=torch.where(chosen & visible, kind, -1),
        severity=severity * visible,
    )


def background_colour(images: Tensor) -> Tensor:
    """Estimates each image's background as its border's median colour: (B, 3, 1, 1)."""
    # Scenes keep their objects off the border, so most of its pixels are background.
    edge = torch.cat(
        [images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1
    )
    return edge.median(-1).values[..., None, None]


def saliency(images: Tensor) -> Tensor:
    """Returns each pixel's distance from the background's colour: (B, 128, 128) in [0, 1]."""
    return (images - background_colour(images)).abs().amax(1)


def _severity(change: Tensor, changed: Tensor) -> Tensor:
    """Returns severity (B,) in [0, 1] from change (B, h, w) and where it is visible."""
    area, total = changed.sum((1, 2)), (change * changed).sum((1, 2))
    # Without a changed pixel the severity is 0; the clamp keeps the quotient from being NaN.
    strength = total / area.clamp(min=1)
    return 0.5 * (area / FULL_AREA).clamp(max=1) + 0.5 * (strength / FULL_CHANGE).clamp(max=1)


# -- patches -------------------------------------------------------------------------------


def _salient_corners(images: Tensor, generator: torch.Generator) -> Tensor:
    """Picks each patch's top left corner, its middle on something painted: (B, 2), (x, y)."""
    painted = (saliency(images) > PAINTED_SALIENCY).float()
    # An image with nothing painted still needs a positive weight somewhere.
    weight = avg_pool2d(painted[:, None], 8).flatten(1) + 1e-4
    cell = torch.multinomial(weight, 1, generator=generator).squeeze(1)
    side = SIZE // 8
    middle = torch.stack([cell % side, cell // side], 1) * 8 + 4  # of a cell of 8 x 8 pixels
    return (middle - PATCH_SIDE // 2).clamp(0, SIZE - PATCH_SIDE)


def _patch_index(corner: Tensor) -> Tensor:
    """Returns flat pixel indices (B, PATCH_SIDE * PATCH_SIDE) of the patches."""
    step = torch.arange(PATCH_SIDE, device=corner.device)
    rows = (corner[:, 1:] + step)[:, :, None] * SIZE
    return (rows + (corner[:, :1] + step)[:, None, :]).flatten(1)


def _cut_patches(images: Tensor, corner: Tensor) -> Tensor:
    index = _patch_index(corner)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(len(images), -1, PATCH_SIDE, PATCH_SIDE)


def _paste_patches(images: Tensor, corner: Tensor, patch: Tensor) -> Tensor:
    index = _patch_index(corner)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).scatter(2, index, patch.flatten(2)).view_as(images)


def _soft_disc(u: Tensor, device: torch.device) -> Tensor:
    """Returns a soft disc in the middle of the patch, radius 12 to 22 pixels.

    u (B,) in [0, 1) -> (B, 1, PATCH_SIDE, PATCH_SIDE) in [0, 1].
    """
    at = torch.arange(PATCH_SIDE, device=device) + 0.5 - PATCH_SIDE / 2
    distance = torch.hypot(at[:, None], at[None, :])
    radius = 12 + 10 * u[:, None, None]
    return ((radius - distance) / 4 + 0.5).clamp(0, 1)[:, None]


def _soften(changed: Tensor) -> Tensor:
    """Closes gaps between changed pixels and softens the rim: (B, h, w) -> the same."""
    # A pixel is marked in full where two fifths of the 7 x 7 pixels around it changed.
    return (2.5 * avg_pool2d(changed[:, None], 7, stride=1, padding=3)[:, 0]).clamp(max=1)


def _changed_boxes(changed: Tensor, corner: Tensor) -> Tensor:
    """Returns the tight boxes of the changes, (B, 4) xyxy in pixels of the whole image."""
    index = torch.arange(PATCH_SIDE, device=changed.device)
    spans = []
    for hit in (changed.amax(1) > 0, changed.amax(2) > 0):
        # The other pixels get the value that neither the minimum nor the maximum can be.
        low = torch.where(hit, index, PATCH_SIDE).amin(1)
        spans.append((low, torch.where(hit, index + 1, 0).amax(1)))
    (x1, x2), (y1, y2) = spans
    x, y = corner[:, 0], corner[:, 1]
    return torch.stack([x + x1, y + y1, x + x2, y + y2], 1).float()


# -- kinds of damage -----------------------------------------------------------------------
# Each takes patches (N, 3, side, side) and u (N, 8) in [0, 1) and returns damaged patches.


def _warp(patch: Tensor, offset: Tensor) -> Tensor:
    """Samples a patch at offsets (N, PATCH_SIDE, PATCH_SIDE, 2), (x, y) in pixels."""
    # `grid_sample` counts from -1 to 1 across the patch, edges included, so a pixel is 2 / side.
    at = (torch.arange(PATCH_SIDE, device=patch.device) + 0.5) * 2 / PATCH_SIDE - 1
    identity = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)
    return grid_sample(
        patch, identity + offset * (2 / PATCH_SIDE), padding_mode="border", align_corners=False
    )


def _smear(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Averages the patch along a line of 14 to 26 pixels."""
    angle, length = u[:, 0] * torch.pi, 14 + 12 * u[:, 1]
    line = torch.stack([angle.cos(), angle.sin()], 1) * length[:, None]
    steps = torch.linspace(-0.5, 0.5, 7, device=patch.device)
    shifted = [
        _warp(patch, (line * s)[:, None, None].expand(-1, PATCH_SIDE, PATCH_SIDE, -1))
        for s in steps
    ]
    return torch.stack(shifted).mean(0)


def _add_noise(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Adds coloured blocks of 4 pixels."""
    size = (len(patch), 3, PATCH_SIDE // 4, PATCH_SIDE // 4)
    blocks = torch.rand(size, generator=generator, device=patch.device) - 0.5
    return patch + interpolate(blocks, scale_factor=4.0) * (0.7 + 0.6 * u[:, 0, None, None, None])


def _break(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Bites discs of 3 to 6 pixels out of the objects and fills them with the palest colour."""
    dots = torch.rand(len(patch), 7, 3, generator=generator, device=patch.device)
    at = torch.arange(PATCH_SIDE, device=patch.device) + 0.5
    centre = PATCH_SIDE * (0.2 + 0.6 * dots[..., :2])
    x = at[None, None, None, :] - centre[:, :, 0, None, None]
    y = at[None, None, :, None] - centre[:, :, 1, None, None]
    radius = 3 + 3 * dots[..., 2, None, None]
    bitten = (radius - torch.hypot(x, y) + 0.5).clamp(0, 1).amax(1)[:, None]
    # Backgrounds are paler than every colour, so the palest pixel of a patch is background.
    palest = patch.sum(1).flatten(1).argmax(1)
    fill = patch.flatten(2).gather(2, palest[:, None, None].expand(-1, 3, 1))[..., None]
    return torch.lerp(patch, fill.expand_as(patch), bitten)


def _bleed(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Lets the darker colours leak out, in cloudy places."""
    # Two box filters after each other are close to a Gaussian.
    blurred = patch
    for _ in range(2):
        blurred = avg_pool2d(pad(blurred, (5, 5, 5, 5), mode="replicate"), 11, stride=1)
    # 0.15 is more than VISIBLE_CHANGE, so the leak is visible even where the blur changes nothing.
    leaked = torch.minimum(patch, blurred - 0.15)
    cloud = torch.rand(len(patch), 1, 7, 7, generator=generator, device=patch.device)
    cloud = interpolate(cloud, size=(PATCH_SIDE, PATCH_SIDE), mode="bilinear", align_corners=False)
    return torch.lerp(patch, leaked, (cloud * 3 - 0.6).clamp(0, 1))


def _melt(patch: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Warps the patch by a smooth random field of 7 to 13 pixels."""
    field = torch.rand(len(patch), 2, 5, 5, generator=generator, device=patch.device) * 2 - 1
    field = interpolate(field, size=(PATCH_SIDE, PATCH_SIDE), mode="bicubic", align_corners=False)
    return _warp(patch, field.permute(0, 2, 3, 1) * (7 + 6 * u[:, 0, None, None, None]))
