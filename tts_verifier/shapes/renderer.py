"""The renderer: scenes -> anti-aliased pictures, from signed distances to each outline.

Distances are after the constructions of Quilez, "2D distance functions". A pixel's coverage
is its signed distance clipped to half a pixel on either side of the outline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from tts_verifier.shapes.scene import SLOTS, Scenes
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES, SIZE


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.92


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72).abs() - 0.23


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    dx, dy = x.abs() - width, y.abs() - height
    outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
    return outside + torch.maximum(dx, dy).clamp(max=0)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.8, 0.8)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.95, 0.31), _box(x, y, 0.31, 0.95))


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Equilateral, a corner at the top, its centre of mass at the origin."""
    inner = 0.52
    slanted = 0.8660254 * x.abs() - 0.5 * y - inner
    return torch.maximum(slanted, y - inner)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: fold to one tenth of the plane, then the distance to one edge."""
    fifth = 2 * math.pi / 5
    bearing = torch.atan2(x, -y)
    folded = (bearing - fifth * torch.round(bearing / fifth)).abs()
    length = torch.hypot(x, y)
    px, py = length * folded.sin(), length * folded.cos()
    tip, notch = (0.0, 1.05), (0.46 * 0.5877853, 0.46 * 0.8090170)
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    edge = math.hypot(ex, ey)
    return ((px - tip[0]) * -ey + (py - tip[1]) * ex) / edge


DISTANCE: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
"""Shape -> signed distance to its outline, in radii, of points (x, y) in radii, y down."""


def palette(device: torch.device) -> Tensor:
    """Returns (colours, 3), sRGB in [0, 1]."""
    return torch.tensor(list(COLOURS.values()), device=device, dtype=torch.float32) / 255


def coverage(scenes: Scenes) -> Tensor:
    """Returns how much of each pixel each object covers if nothing hides it.

    float32 (B, K, 128, 128) in [0, 1]; zero for absent objects.
    """
    device = scenes.centre.device
    out = torch.zeros(len(scenes), SLOTS, SIZE, SIZE, device=device)
    axis = torch.arange(SIZE, device=device) + 0.5
    for index, name in enumerate(SHAPES):
        row, slot = torch.nonzero(scenes.shape == index, as_tuple=True)
        centre, radius = scenes.centre[row, slot], scenes.radius[row, slot]
        x = axis[None, None, :] - centre[:, 0, None, None]
        y = axis[None, :, None] - centre[:, 1, None, None]
        turn = scenes.angle[row, slot][:, None, None]
        cos, sin = turn.cos() / radius[:, None, None], turn.sin() / radius[:, None, None]
        distance = DISTANCE[name](cos * x + sin * y, cos * y - sin * x)
        out[row, slot] = (0.5 - distance * radius[:, None, None]).clamp(0, 1)
    return out


def visible(cover: Tensor) -> Tensor:
    """Returns what is left of each object after later ones are painted: (B, K, 128, 128)."""
    left = torch.ones_like(cover[:, 0])
    parts = []
    for k in reversed(range(cover.shape[1])):
        parts.append(cover[:, k] * left)
        left = left * (1 - cover[:, k])
    return torch.stack(parts[::-1], 1)


def paint(scenes: Scenes, cover: Tensor) -> Tensor:
    """Paints objects of given coverage over the backgrounds: (B, 3, 128, 128) in [0, 1]."""
    ramp = torch.linspace(0, 1, SIZE, device=cover.device)[None, None, :, None]
    top, bottom = scenes.background.unbind(1)
    ground = torch.lerp(top[..., None, None], bottom[..., None, None], ramp)
    image = ground.expand(-1, -1, -1, SIZE).clone()
    colours = palette(cover.device)[scenes.colour]
    for k in range(cover.shape[1]):
        image = torch.lerp(image, colours[:, k, :, None, None], cover[:, k, None])
    return image


def render_batch(scenes: Scenes) -> Tensor:
    """Renders scenes: float32 (B, 3, 128, 128), sRGB in [0, 1]."""
    return paint(scenes, coverage(scenes))


def as_image(picture: Tensor) -> Image.Image:
    """Converts (3, H, W) floats in [0, 1] to PIL RGB."""
    pixels = (picture * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def boxes(cover: Tensor) -> Tensor:
    """Returns tight boxes of coverage maps: (B, K, 4) xyxy in pixels, zero where absent."""
    on = cover > 0.5
    columns, rows = on.any(-2), on.any(-1)
    index = torch.arange(SIZE, device=cover.device)

    def span(hit: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.where(hit, index, SIZE).amin(-1)
        high = torch.where(hit, index + 1, 0).amax(-1)
        return torch.minimum(low, high), high

    (x1, x2), (y1, y2) = span(columns), span(rows)
    return torch.stack([x1, y1, x2, y2], -1).float()
