"""The judge reads an image by fitting the renderer to it (analysis by synthesis).

Reports rely on it, and no model is trained on its readings.

1. The background is fitted as a gradient.
2. Every pixel is unmixed into background and one colour.
3. Rendered templates of all shapes, sizes and tilts are correlated with each colour's coverage
   (a matched filter). They are also correlated with the coverage of all colours together:
   otherwise a thing into which colours bleed would be read as several.
4. Each peak is refined for every shape by Gauss-Newton on place, size and tilt; the shape with
   the least error wins.
5. The pixels that no fitted thing explains are the artifact.

It shares with the oracle only the meaning of captions (`constraints.compare`) and the palette.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from tts_verifier.shapes.grammar import Spec
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.shapes.renderer import DISTANCE, palette
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES, SIZE

GRID: Final = SIZE // 2
"""Side of the grid on which fitting is done; one grid pixel is 2 x 2 pixels of the image."""
WINDOW_SIDE: Final = 40
"""Side of the square around a peak in which a template is fitted, in grid pixels."""
TEMPLATE_RADII: Final = tuple(4.0 * 1.15**k for k in range(11))
"""Radii of the first templates, in grid pixels: 4 to 17."""
TEMPLATE_TILTS: Final = (-0.14, 0.0, 0.14)
"""Rotations of the first templates, in radians."""
GAUSS_NEWTON_STEPS: Final = 5
MAX_PEAKS: Final = 6
"""The most things to look for in one colour."""
SPREAD: Final = 0.2
"""How far a pixel may lie off the line between background and colour (sRGB, 0 to 1)."""
FAINT: Final = 0.3
"""Coverage below which nothing is there; above, a pale thing is read at full strength."""
MIN_COVERAGE: Final = 7.0
"""Least coverage of a thing, in grid pixels."""
MAX_MISFIT: Final = 0.40
"""Largest unexplained share of a template's energy; beyond it, no shape is known."""
THICK_RING_HOLE: Final = 0.28
"""Radius of the free middle of even a thick ring, over its outer radius."""
PURE: Final = 0.95
"""Least share of one colour in a thing of a single colour."""
ALL: Final = len(COLOURS)
"""The channel of all colours together, which follows one channel of each."""
UNEXPLAINED: Final = 0.12
"""Difference between image and fit that counts as an artifact (sRGB, 0 to 1)."""


def read_by_fitting(pixels: NDArray[np.uint8], spec: Spec) -> Reading:
    """Reads an image, (128, 128, 3) uint8 sRGB, against a spec."""
    with torch.inference_mode():
        # Copied, because the array of a PIL image is read-only, of which torch warns.
        whole = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        rgb = avg_pool2d(whole[None], 2)[0]
        background = _fit_gradient(rgb)
        cover = _unmix(rgb, background)
        fits = _select_fits(cover, _fit_peaks(cover, _find_peaks(cover)))
        artifact = _unexplained_share(rgb, background, fits)
        return compare(spec, [_fitted_thing(f) for f in fits], artifact=artifact)


class Peak(NamedTuple):
    """Where a template matches best, before it is refined."""

    colour: int
    """Index into COLOURS, or ALL."""
    x: int
    """Column on the grid."""
    y: int
    """Row on the grid."""
    log_radius: float
    """Logarithm of the radius in grid pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class ShapeFit:
    """One fitted thing."""

    shape: int
    """Index into SHAPES."""
    colour: int
    """Index into COLOURS, or ALL."""
    params: Tensor
    """(4,) x, y, log radius, tilt, in grid pixels and radians."""
    misfit: float
    """Unexplained share of the template's energy, in [0, inf)."""


def _fit_gradient(rgb: Tensor) -> Tensor:
    """Fits the background by reweighted least squares, as a vertical gradient: (3, 64, 64)."""
    y = torch.linspace(-1, 1, GRID)
    basis = torch.stack([torch.ones(GRID), y], 1)[:, None].expand(-1, GRID, -1).reshape(-1, 2)
    flat = rgb.flatten(1).T
    # From wide to narrow: the first fits tolerate a gradient, the last ones reject painted pixels.
    fitted = flat.median(0).values.expand_as(flat)
    for width in (0.2, 0.1, 0.06, 0.04):
        weight = torch.exp(-(((flat - fitted) / width) ** 2).sum(1))[:, None]
        # The small diagonal keeps the system solvable when no pixel has any weight.
        normal = basis.T @ (weight * basis) + 1e-3 * torch.eye(2)
        fitted = basis @ torch.linalg.solve(normal, basis.T @ (weight * flat))
    return fitted.T.view_as(rgb)


def _unmix(rgb: Tensor, background: Tensor) -> Tensor:
    """Returns each colour's coverage of each pixel, then that of all colours together.

    Returns:
        float32 (colours + 1, 64, 64) in [0, 1].
    """
    to_colour = palette(rgb.device)[:, :, None, None] - background
    offset = rgb - background
    # Projects each pixel onto the line from the background to each colour.
    share = (offset * to_colour).sum(1) / (to_colour * to_colour).sum(1)
    off = (offset - share[:, None] * to_colour).square().sum(1)
    belief = torch.exp(-off / SPREAD**2) * share.clamp(0, 1)
    # A pixel goes to the colour that prevails around it: an anti-aliased edge alone is ambiguous.
    votes = avg_pool2d(belief, 5, stride=1, padding=2)
    amount = belief.amax(0)
    # The strongest coverage nearby, smoothed first so that no single pixel decides.
    strength = max_pool2d(avg_pool2d(amount[None], 3, stride=1, padding=1), 13, stride=1, padding=6)
    # A pale thing is brought to full strength, up to a factor of 2.5.
    level = torch.where(strength < FAINT, 1.0, strength.clamp(0.4, 1))
    each = (amount / level).clamp(max=1) * (votes == votes.amax(0))
    return torch.cat([each, _any_colour(offset.norm(dim=0))[None]])


def _any_colour(difference: Tensor) -> Tensor:
    """Returns coverage by any colour from the distance to the background: (64, 64) in [0, 1]."""
    smooth = avg_pool2d(difference[None], 3, stride=1, padding=1)
    strongest = max_pool2d(smooth, 13, stride=1, padding=6)[0]
    return torch.where(strongest < FAINT, 0.0, (difference / strongest).clamp(max=1))


@cache
def _templates() -> tuple[Tensor, Tensor, Tensor]:
    """Renders the T first templates.

    Returns:
        Their conjugate spectra (T, 64, 33), energies (T,) and (shape, log radius, tilt) (T, 3).
    """
    rows = []
    for index, name in enumerate(SHAPES):
        # Tilting changes neither a circle nor a ring.
        tilts = (0.0,) if name in ("circle", "ring") else TEMPLATE_TILTS
        rows += [(index, float(np.log(r)), t) for r in TEMPLATE_RADII for t in tilts]
    params = torch.tensor([(0.0, 0.0, log_radius, tilt) for _, log_radius, tilt in rows])
    shape = torch.tensor([index for index, _, _ in rows])
    full = _render_templates(shape, params, GRID)
    # Moves each template's middle to the origin: a peak then lies on the middle of the thing. The
    # conjugate makes a product of spectra a correlation rather than a convolution.
    spectrum = torch.fft.rfft2(torch.fft.ifftshift(full, dim=(-2, -1)))
    return spectrum.conj(), full.square().sum((1, 2)), torch.tensor(rows)


def _render_templates(shape: Tensor, params: Tensor, side: int) -> Tensor:
    """Renders N shapes around a window's middle.

    Args:
        shape: (N,) indices into SHAPES.
        params: (N, 4) x, y, log radius, tilt.
        side: of the window, in grid pixels.

    Returns:
        Coverage (N, side, side) in [0, 1].
    """
    at = torch.arange(side) - side // 2 + 0.0
    x, y, log_radius, tilt = (p[:, None, None] for p in params.unbind(1))
    radius = log_radius.exp()
    dx, dy = (at[None, None, :] - x) / radius, (at[None, :, None] - y) / radius
    u, v = tilt.cos() * dx + tilt.sin() * dy, tilt.cos() * dy - tilt.sin() * dx
    distance = torch.empty(len(shape), side, side)
    for index, name in enumerate(SHAPES):
        rows = torch.nonzero(shape == index).flatten()
        if len(rows):
            distance[rows] = DISTANCE[name](u[rows], v[rows])
    return (0.5 - distance * radius).clamp(0, 1)


def _find_peaks(cover: Tensor) -> list[Peak]:
    """Finds where templates match, the strongest first in each colour.

    The gain of a template is the squared error that it explains: twice its correlation with
    the coverage less its own energy. In the channel of all colours only things of several
    colours are looked for.
    """
    spectrum, energy, templates = _templates()
    at = torch.arange(GRID)
    peaks = []
    for colour in torch.nonzero((cover > 0.5).sum((1, 2)) > MIN_COVERAGE).flatten().tolist():
        match = torch.fft.irfft2(torch.fft.rfft2(cover[colour]) * spectrum, s=(GRID, GRID))
        gain, which = (2 * match - energy[:, None, None]).max(0)
        highest = max_pool2d(gain[None, None], 5, stride=1, padding=2)[0, 0]
        gain = torch.where(gain == highest, gain, -torch.inf)
        for _ in range(MAX_PEAKS):
            y, x = divmod(int(gain.argmax()), GRID)
            # A template that fits perfectly gains its own energy, which is about its coverage.
            if gain[y, x] < MIN_COVERAGE:
                break
            log_radius = float(templates[which[y, x], 1])
            # Other peaks within this radius are other templates on the same thing.
            near = torch.hypot(at[None] - x + 0.0, at[:, None] - y + 0.0) < np.exp(log_radius)
            by_colour = cover[:ALL, near].sum(1)
            if colour < ALL or by_colour.max() < PURE * by_colour.sum():
                peaks.append(Peak(colour, x, y, log_radius))
            gain = gain.masked_fill(near, -torch.inf)
    return peaks


def _fit_peaks(cover: Tensor, peaks: list[Peak]) -> list[ShapeFit]:
    """Refines every peak for every shape and keeps the shape with the least error."""
    if not peaks:
        return []
    half = WINDOW_SIDE // 2
    # Padded with background, so that windows at the border have the full size.
    padded = pad(cover, (half, half, half, half))
    windows = torch.stack(
        [padded[p.colour, p.y : p.y + WINDOW_SIDE, p.x : p.x + WINDOW_SIDE] for p in peaks]
    )
    # All peaks and all shapes are refined as one batch.
    shape = torch.arange(len(SHAPES)).repeat(len(peaks))
    target = windows.repeat_interleave(len(SHAPES), 0)
    # The peak is the middle of its window, so a fit starts at (0, 0) of the window.
    start = torch.tensor([(0.0, 0.0, p.log_radius, 0.0) for p in peaks])
    params = _refine(shape, start.repeat_interleave(len(SHAPES), 0), target)
    misfit = _misfit(shape, params, target).view(len(peaks), -1)
    best = misfit.argmin(1)
    params = params.view(len(peaks), len(SHAPES), 4)
    fits = []
    for i, peak in enumerate(peaks):
        k = _ring_if_hollow(int(best[i]), windows[i], params[i])
        place = params[i, k] + torch.tensor([float(peak.x), float(peak.y), 0.0, 0.0])
        fits.append(ShapeFit(k, peak.colour, place, float(misfit[i, k])))
    return fits


def _ring_if_hollow(shape: int, window: Tensor, params: Tensor) -> int:
    """Takes a circle with an empty middle for a ring, which may be thicker than rendered."""
    if SHAPES[shape] != "circle":
        return shape
    at = torch.arange(WINDOW_SIDE) - WINDOW_SIDE // 2 + 0.0
    x, y, log_radius, _ = params[shape]
    middle = torch.hypot(at[None] - x, at[:, None] - y) < THICK_RING_HOLE * log_radius.exp()
    return SHAPES.index("ring") if middle.any() and window[middle].mean() < 0.5 else shape


def _refine(shape: Tensor, params: Tensor, target: Tensor) -> Tensor:
    """Refines params (N, 4) by damped Gauss-Newton steps with finite differences."""
    # The radius is fitted by its logarithm, so it stays positive and steps are relative.
    nudge = torch.tensor([0.2, 0.2, 0.03, 0.05])
    for _ in range(GAUSS_NEWTON_STEPS):
        trial = torch.cat([params, *(params + torch.eye(4)[k] * nudge[k] for k in range(4))])
        rendered = _render_templates(shape.repeat(5), trial, WINDOW_SIDE).view(5, len(params), -1)
        near = _neighbourhood(params)
        error = (target.flatten(1) - rendered[0]) * near
        slope = ((rendered[1:] - rendered[0]) * near).permute(1, 2, 0) / nudge
        normal = slope.transpose(1, 2) @ slope
        # Levenberg and Marquardt's damping. The constant serves the tilt of circles and rings,
        # whose slope is 0: without it the system would be singular.
        damped = normal + torch.diag_embed(0.05 * normal.diagonal(dim1=1, dim2=2) + 0.3)
        step = torch.linalg.solve(damped, slope.transpose(1, 2) @ error[..., None])[..., 0]
        # Limits each step, because the linear model holds only close by.
        limit = torch.tensor([1.5, 1.5, 0.15, 0.15])
        params = params + torch.maximum(torch.minimum(step, limit), -limit)
        params[:, 2].clamp_(np.log(3.0), np.log(20.0))
        params[:, 3].clamp_(-0.6, 0.6)
    return params


def _neighbourhood(params: Tensor) -> Tensor:
    """Returns the pixels that a fit considers, (N, side * side) 0 or 1.

    They lie within 1.35 radii of its centre: farther ones belong to its neighbours.
    """
    at = torch.arange(WINDOW_SIDE) - WINDOW_SIDE // 2 + 0.0
    x, y, reach = params[:, 0, None, None], params[:, 1, None, None], params[:, 2].exp()
    distance = torch.hypot(at[None, None, :] - x, at[None, :, None] - y)
    return (distance < 1.35 * reach[:, None, None] + 1).float().flatten(1)


def _misfit(shape: Tensor, params: Tensor, target: Tensor) -> Tensor:
    """Returns the squared error near each fit, over the template's energy: (N,)."""
    rendered = _render_templates(shape, params, WINDOW_SIDE).flatten(1)
    error = ((target.flatten(1) - rendered) * _neighbourhood(params)).square().sum(1)
    return error / rendered.square().sum(1).clamp(min=1)


def _select_fits(cover: Tensor, fits: list[ShapeFit]) -> list[ShapeFit]:
    """Selects the fits that explain the image, so that each part of it is explained once.

    In order of misfit, a fit is selected if it explains coverage that no better fit explains. A
    thing of several colours then replaces its parts where that explains more.
    """
    left = cover.clone()
    selected = []
    for fit in sorted((f for f in fits if f.colour < ALL), key=lambda f: f.misfit):
        rendered = _render_fits([fit])[0]
        own = left[fit.colour]
        # The squared error that the fit explains, as in `_find_peaks`.
        if 2 * float((own * rendered).sum()) - float(rendered.square().sum()) > MIN_COVERAGE:
            selected.append(fit)
            left[fit.colour] = (own - rendered).clamp(min=0)
    for whole in sorted((f for f in fits if f.colour == ALL), key=lambda f: f.misfit):
        selected = _merge_parts(cover, selected, whole)
    return selected


def _merge_parts(cover: Tensor, parts: list[ShapeFit], whole: ShapeFit) -> list[ShapeFit]:
    """Replaces the parts of a thing of several colours by the whole, if that explains more.

    Each thing saved counts for as much as the smallest thing, `MIN_COVERAGE`.
    """
    rendered = _render_fits([whole])[0]
    rest = [f for f in parts if not _mostly_inside(f, rendered)]
    saved = len(parts) - len(rest) - 1
    main_colour = int((cover[:ALL] * rendered).sum((1, 2)).argmax())
    merged = [*rest, replace(whole, colour=main_colour)]
    limit = _squared_error(cover, parts) + MIN_COVERAGE * saved
    return merged if _squared_error(cover, merged) < limit else parts


def _mostly_inside(fit: ShapeFit, region: Tensor) -> bool:
    """Tells whether most of a fitted thing lies in a region, (64, 64) in [0, 1]."""
    own = _render_fits([fit])[0]
    return float((own * region).sum()) > 0.5 * float(own.sum())


def _squared_error(cover: Tensor, fits: list[ShapeFit]) -> float:
    """Returns the squared error of fits as coverage by any colour, in grid pixels."""
    rendered = _render_fits(fits).amax(0) if fits else torch.zeros(GRID, GRID)
    return float((cover[ALL] - rendered).square().sum())


def _render_fits(fits: list[ShapeFit]) -> Tensor:
    """Renders N fits on the whole grid: coverage (N, 64, 64)."""
    shape = torch.tensor([f.shape for f in fits])
    # `_render_templates` counts from the window's middle, fits count from the grid's corner.
    middle = torch.tensor([GRID // 2, GRID // 2, 0, 0])
    return _render_templates(shape, torch.stack([f.params for f in fits]) - middle, GRID)


def _unexplained_share(rgb: Tensor, background: Tensor, fits: list[ShapeFit]) -> float:
    """Returns the share of pixels that background and fitted things do not explain."""
    image = background
    if fits:
        for fit, cover in zip(fits, _render_fits(fits), strict=True):
            image = torch.lerp(image, palette(rgb.device)[fit.colour][:, None, None], cover)
    return float(((rgb - image).abs().amax(0) > UNEXPLAINED).float().mean())


def _fitted_thing(fit: ShapeFit) -> Thing:
    """Converts a fit to a thing in pixels of the image."""
    x, y, log_radius, _ = fit.params.tolist()
    shape = SHAPES[fit.shape] if fit.misfit < MAX_MISFIT else None
    # Grid pixel x covers the image from 2 x to 2 x + 2; its middle is at 2 x + 1.
    x, y, radius = 2 * x + 1, 2 * y + 1, 2 * float(np.exp(log_radius))
    box = (max(x - radius, 0), max(y - radius, 0), min(x + radius, SIZE), min(y + radius, SIZE))
    return Thing(shape, list(COLOURS)[fit.colour], (x, y), box)
