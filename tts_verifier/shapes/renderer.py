"""The renderer: turns scenes into anti-aliased images by signed distances to each outline.

The distances follow Quilez, "2D distance functions". A pixel's coverage is its signed distance,
clipped to half a pixel on either side of the outline.
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
    """Distance to an equilateral triangle: a corner at the top, its centroid at the origin."""
    # The largest of the distances to the three sides: beyond a corner it is too small, but coverage
    # uses only the half pixel on either side of the outline.
    inner = 0.52
    slanted = 0.8660254 * x.abs() - 0.5 * y - inner
    return torch.maximum(slanted, y - inner)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a star of five points: folds the plane to a tenth, where one edge is left."""
    fifth = 2 * math.pi / 5
    # From the top, where one of the points is.
    bearing = torch.atan2(x, -y)
    folded = (bearing - fifth * torch.round(bearing / fifth)).abs()
    length = torch.hypot(x, y)
    px, py = length * folded.sin(), length * folded.cos()
    # The notch lies between two points, at 36 degrees: its factors are sin 36 and cos 36.
    tip, notch = (0.0, 1.05), (0.46 * 0.5877853, 0.46 * 0.8090170)
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    edge = math.hypot(ex, ey)
    # The distance to the edge's whole line, which near the outline is that to the edge.
    return ((px - tip[0]) * -ey + (py - tip[1]) * ex) / edge


DISTANCE: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
"""Shape -> function from points (x, y) to their signed distance from the outline.

Both are in units of the radius, y points down; the distance is negative inside."""


def palette(device: torch.device) -> Tensor:
    """Returns the colours of COLOURS, in order: float32 (colours, 3), sRGB in [0, 1]."""
    return torch.tensor(list(COLOURS.values()), device=device, dtype=torch.float32) / 255


def coverage(scenes: Scenes) -> Tensor:
    """Returns how much of each pixel each object would cover if nothing hid it.

    Returns:
        float32 (B, K, 128, 128) in [0, 1], zero for empty slots.
    """
    device = scenes.centre.device
    out = torch.zeros(len(scenes), SLOTS, SIZE, SIZE, device=device)
    axis = torch.arange(SIZE, device=device) + 0.5
    for index, name in enumerate(SHAPES):
        row, slot = torch.nonzero(scenes.shape == index, as_tuple=True)
        centre, radius = scenes.centre[row, slot], scenes.radius[row, slot]
        x = axis[None, None, :] - centre[:, 0, None, None]
        y = axis[None, :, None] - centre[:, 1, None, None]
        angle = scenes.angle[row, slot][:, None, None]
        cos, sin = angle.cos() / radius[:, None, None], angle.sin() / radius[:, None, None]
        # Points are turned back and scaled to the radius; distances are scaled to pixels again.
        distance = DISTANCE[name](cos * x + sin * y, cos * y - sin * x)
        out[row, slot] = (0.5 - distance * radius[:, None, None]).clamp(0, 1)
    return out


def visible(cover: Tensor) -> Tensor:
    """Returns the visible part of each object's coverage: (B, K, H, W) -> the same shape.

    Later slots hide earlier ones.
    """
    # From the front to the back, because each object hides a share of all that lie behind it.
    uncovered = torch.ones_like(cover[:, 0])
    front_to_back = []
    for k in reversed(range(cover.shape[1])):
        front_to_back.append(cover[:, k] * uncovered)
        uncovered = uncovered * (1 - cover[:, k])
    return torch.stack(front_to_back[::-1], 1)


def paint(scenes: Scenes, cover: Tensor) -> Tensor:
    """Paints objects of known coverage (B, K, 128, 128) over the backgrounds.

    Returns:
        float32 (B, 3, 128, 128), sRGB in [0, 1].
    """
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


def to_uint8(values: Tensor) -> Tensor:
    """Rounds numbers in [0, 1] to bytes: the same shape, uint8, 0 to 255."""
    return (values * 255).round().clamp(0, 255).byte()


def to_pil_images(images: Tensor) -> list[Image.Image]:
    """Converts floats (B, 3, H, W) in [0, 1] to RGB images."""
    return [Image.fromarray(p) for p in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()]


def bounding_boxes(cover: Tensor) -> Tensor:
    """Returns the tight boxes of coverage maps.

    Args:
        cover: (B, K, 128, 128) in [0, 1]; a pixel belongs to an object above 0.5.

    Returns:
        float32 (B, K, 4), xyxy in pixels, zeros where nothing is covered.
    """
    on = cover > 0.5
    columns, rows = on.any(-2), on.any(-1)
    index = torch.arange(SIZE, device=cover.device)

    def span(hit: Tensor) -> tuple[Tensor, Tensor]:
        # Where nothing is covered, the minimum below turns `low` into 0 as well.
        low = torch.where(hit, index, SIZE).amin(-1)
        high = torch.where(hit, index + 1, 0).amax(-1)
        return torch.minimum(low, high), high

    (x1, x2), (y1, y2) = span(columns), span(rows)
    return torch.stack([x1, y1, x2, y2], -1).float()
