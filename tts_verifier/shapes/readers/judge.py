"""The judge: fits the renderer to a picture; what reports are judged by, never trained on.

Analysis by synthesis. The background is fitted as a gradient; every pixel is unmixed into
background and one colour; rendered templates of all shapes, sizes and tilts are correlated
with each colour's coverage (matched filter), and with that of all colours together, lest a thing
into which colours bleed be read as several; each peak is refined for every shape by
Gauss-Newton on place, size and tilt, and the shape that leaves least is taken. What no fitted
thing explains is the artifact residual.

It shares with the oracle only what a caption means (`reading.compare`) and the palette.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Final

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
"""Fitting is done on pixels of two by two."""
WINDOW: Final = 40
"""Side of the square around a peak in which a template is fitted, grid pixels."""
RADII: Final = tuple(4.0 * 1.15**k for k in range(11))
"""Radii of the first templates, grid pixels: 4 to 17."""
TILTS: Final = (-0.14, 0.0, 0.14)
STEPS: Final = 5
"""Gauss-Newton steps."""
SPREAD: Final = 0.2
"""How far a pixel may lie off the line between background and colour (sRGB, 0 to 1)."""
FAINT: Final = 0.3
"""Coverage below which nothing is there; above, a pale thing is read at full strength."""
FAINTEST: Final = 7.0
"""Least coverage, in grid pixels, that a thing has."""
MISFIT: Final = 0.40
"""Share of a template's energy left unexplained, above which a thing has no known shape."""
HOLE: Final = 0.28
"""Radius of the middle that even a thick ring leaves free, over its own."""
PURE: Final = 0.95
"""Share of one colour in a thing that is not of several."""
ALL: Final = len(COLOURS)
"""The channel of all colours together, beside one of each."""
UNEXPLAINED: Final = 0.12
"""Difference between picture and fit that counts as an artifact (sRGB, 0 to 1)."""


def read(pixels: NDArray[np.uint8], spec: Spec) -> Reading:
    """Reads (128, 128, 3) uint8 sRGB against a spec."""
    with torch.inference_mode():
        whole = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        rgb = avg_pool2d(whole[None], 2)[0]
        ground = _background(rgb)
        cover = _unmix(rgb, ground)
        fits = _explaining(cover, _fit(cover, _peaks(cover)))
        artifact = _residual(rgb, ground, fits)
        return compare(spec, [_thing(f) for f in fits], artifact=artifact)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """One fitted thing; `params`: (4,) x, y, log radius, tilt on the grid. `colour` may be ALL."""

    shape: int
    colour: int
    params: Tensor
    misfit: float


def _background(rgb: Tensor) -> Tensor:
    """Fits a vertical gradient by reweighted least squares: (3, 64, 64)."""
    y = torch.linspace(-1, 1, GRID)
    basis = torch.stack([torch.ones(GRID), y], 1)[:, None].expand(-1, GRID, -1).reshape(-1, 2)
    flat = rgb.flatten(1).T
    fitted = flat.median(0).values.expand_as(flat)
    for width in (0.2, 0.1, 0.06, 0.04):
        weight = torch.exp(-(((flat - fitted) / width) ** 2).sum(1))[:, None]
        normal = basis.T @ (weight * basis) + 1e-3 * torch.eye(2)
        fitted = basis @ torch.linalg.solve(normal, basis.T @ (weight * flat))
    return fitted.T.view_as(rgb)


def _unmix(rgb: Tensor, ground: Tensor) -> Tensor:
    """Returns each colour's coverage of each pixel, then that of all: (colours + 1, 64, 64) in
    [0, 1]."""
    way = palette(rgb.device)[:, :, None, None] - ground
    offset = rgb - ground
    share = (offset * way).sum(1) / (way * way).sum(1)
    off = (offset - share[:, None] * way).square().sum(1)
    belief = torch.exp(-off / SPREAD**2) * share.clamp(0, 1)
    votes = avg_pool2d(belief, 5, stride=1, padding=2)
    amount = belief.amax(0)
    strength = max_pool2d(avg_pool2d(amount[None], 3, stride=1, padding=1), 13, stride=1, padding=6)
    level = torch.where(strength < FAINT, 1.0, strength.clamp(0.4, 1))
    each = (amount / level).clamp(max=1) * (votes == votes.amax(0))
    return torch.cat([each, _any_colour(offset.norm(dim=0))[None]])


def _any_colour(difference: Tensor) -> Tensor:
    """Returns coverage from how far pixels are from the background: (64, 64) in [0, 1]."""
    smooth = avg_pool2d(difference[None], 3, stride=1, padding=1)
    most = max_pool2d(smooth, 13, stride=1, padding=6)[0]
    return torch.where(most < FAINT, 0.0, (difference / most).clamp(max=1))


@cache
def _templates() -> tuple[Tensor, Tensor, Tensor]:
    """Returns spectra (T, 64, 33), energies (T,) and (shape, log radius, tilt) (T, 3)."""
    rows = []
    for index, name in enumerate(SHAPES):
        tilts = (0.0,) if name in ("circle", "ring") else TILTS
        rows += [(index, float(np.log(r)), t) for r in RADII for t in tilts]
    params = torch.tensor([(0.0, 0.0, logr, tilt) for _, logr, tilt in rows])
    shape = torch.tensor([index for index, _, _ in rows])
    full = _render(shape, params, GRID)
    spectrum = torch.fft.rfft2(torch.fft.ifftshift(full, dim=(-2, -1)))
    return spectrum.conj(), full.square().sum((1, 2)), torch.tensor(rows)


def _render(shape: Tensor, params: Tensor, side: int) -> Tensor:
    """Renders coverage around a window's middle: (N,), (N, 4) -> (N, side, side)."""
    at = torch.arange(side) - side // 2 + 0.0
    x, y, logr, tilt = (p[:, None, None] for p in params.unbind(1))
    radius = logr.exp()
    dx, dy = (at[None, None, :] - x) / radius, (at[None, :, None] - y) / radius
    u, v = tilt.cos() * dx + tilt.sin() * dy, tilt.cos() * dy - tilt.sin() * dx
    distance = torch.empty(len(shape), side, side)
    for index, name in enumerate(SHAPES):
        rows = torch.nonzero(shape == index).flatten()
        if len(rows):
            distance[rows] = DISTANCE[name](u[rows], v[rows])
    return (0.5 - distance * radius).clamp(0, 1)


def _peaks(cover: Tensor) -> list[tuple[int, int, int, float]]:
    """Finds (colour, x, y, log radius) of things, strongest first in each colour; with all
    colours together only what shows several.

    The gain of a template is how much squared error it explains: twice its correlation with
    the coverage less its own energy.
    """
    spectrum, energy, rows = _templates()
    found = []
    for colour in torch.nonzero((cover > 0.5).sum((1, 2)) > FAINTEST).flatten().tolist():
        match = torch.fft.irfft2(torch.fft.rfft2(cover[colour]) * spectrum, s=(GRID, GRID))
        gain, which = (2 * match - energy[:, None, None]).max(0)
        smooth = max_pool2d(gain[None, None], 5, stride=1, padding=2)[0, 0]
        gain = torch.where(gain == smooth, gain, -torch.inf)
        for _ in range(6):
            best = int(gain.argmax())
            y, x = divmod(best, GRID)
            if gain[y, x] < FAINTEST:
                break
            logr = float(rows[which[y, x], 1])
            at = torch.arange(GRID)
            near = torch.hypot(at[None] - x + 0.0, at[:, None] - y + 0.0) < np.exp(logr)
            shown = cover[:ALL, near].sum(1)
            if colour < ALL or shown.max() < PURE * shown.sum():
                found.append((colour, x, y, logr))
            gain = gain.masked_fill(near, -torch.inf)
    return found


def _fit(cover: Tensor, peaks: list[tuple[int, int, int, float]]) -> list[Fit]:
    """Refines every peak for every shape and keeps the shape that leaves least."""
    if not peaks:
        return []
    half = WINDOW // 2
    padded = pad(cover, (half, half, half, half))
    windows = torch.stack([padded[c, y : y + WINDOW, x : x + WINDOW] for c, x, y, _ in peaks])
    shape = torch.arange(len(SHAPES)).repeat(len(peaks))
    target = windows.repeat_interleave(len(SHAPES), 0)
    start = torch.tensor([(0.0, 0.0, logr, 0.0) for *_, logr in peaks])
    params = _refine(shape, start.repeat_interleave(len(SHAPES), 0), target)
    left = _misfit(shape, params, target).view(len(peaks), -1)
    best = left.argmin(1)
    params = params.view(len(peaks), len(SHAPES), 4)
    fits = []
    for i, (colour, x, y, _) in enumerate(peaks):
        k = _hollowed(int(best[i]), windows[i], params[i])
        place = params[i, k] + torch.tensor([float(x), float(y), 0.0, 0.0])
        fits.append(Fit(k, colour, place, float(left[i, k])))
    return fits


def _hollowed(shape: int, window: Tensor, params: Tensor) -> int:
    """Takes a circle with an empty middle for a ring: a ring may be thicker than rendered."""
    if SHAPES[shape] != "circle":
        return shape
    at = torch.arange(WINDOW) - WINDOW // 2 + 0.0
    x, y, logr, _ = params[shape]
    middle = torch.hypot(at[None] - x, at[:, None] - y) < HOLE * logr.exp()
    return SHAPES.index("ring") if middle.any() and window[middle].mean() < 0.5 else shape


def _refine(shape: Tensor, params: Tensor, target: Tensor) -> Tensor:
    """Gauss-Newton with finite differences on x, y, log radius and tilt."""
    nudge = torch.tensor([0.2, 0.2, 0.03, 0.05])
    for _ in range(STEPS):
        trial = torch.cat([params, *(params + torch.eye(4)[k] * nudge[k] for k in range(4))])
        drawn = _render(shape.repeat(5), trial, WINDOW).view(5, len(params), -1)
        near = _around(params)
        error = (target.flatten(1) - drawn[0]) * near
        slope = ((drawn[1:] - drawn[0]) * near).permute(1, 2, 0) / nudge
        normal = slope.transpose(1, 2) @ slope
        damped = normal + torch.diag_embed(0.05 * normal.diagonal(dim1=1, dim2=2) + 0.3)
        step = torch.linalg.solve(damped, slope.transpose(1, 2) @ error[..., None])[..., 0]
        limit = torch.tensor([1.5, 1.5, 0.15, 0.15])
        params = params + torch.maximum(torch.minimum(step, limit), -limit)
        params[:, 2].clamp_(np.log(3.0), np.log(20.0))
        params[:, 3].clamp_(-0.6, 0.6)
    return params


def _around(params: Tensor) -> Tensor:
    """Where a fit looks: within 1.35 radii of its centre, so that neighbours do not pull."""
    at = torch.arange(WINDOW) - WINDOW // 2 + 0.0
    x, y, reach = params[:, 0, None, None], params[:, 1, None, None], params[:, 2].exp()
    distance = torch.hypot(at[None, None, :] - x, at[None, :, None] - y)
    return (distance < 1.35 * reach[:, None, None] + 1).float().flatten(1)


def _misfit(shape: Tensor, params: Tensor, target: Tensor) -> Tensor:
    """Returns the squared error near each fit, over the template's energy: (N,)."""
    drawn = _render(shape, params, WINDOW).flatten(1)
    error = ((target.flatten(1) - drawn) * _around(params)).square().sum(1)
    return error / drawn.square().sum(1).clamp(min=1)


def _explaining(cover: Tensor, fits: list[Fit]) -> list[Fit]:
    """Keeps, from the best fit on, those that explain coverage which no better one explains;
    then a thing of several colours in place of its parts where that explains more."""
    left = cover.clone()
    kept = []
    for fit in sorted((f for f in fits if f.colour < ALL), key=lambda f: f.misfit):
        drawn = _drawn([fit])[0]
        mine = left[fit.colour]
        if 2 * float((mine * drawn).sum()) - float(drawn.square().sum()) > FAINTEST:
            kept.append(fit)
            left[fit.colour] = (mine - drawn).clamp(min=0)
    for whole in sorted((f for f in fits if f.colour == ALL), key=lambda f: f.misfit):
        kept = _joined(cover, kept, whole)
    return kept


def _joined(cover: Tensor, kept: list[Fit], whole: Fit) -> list[Fit]:
    """Puts a thing of several colours in the place of the things within it, if the picture is
    then explained better; each thing that it saves counts for as much as the least one."""
    drawn = _drawn([whole])[0]
    rest = [f for f in kept if not _within(f, drawn)]
    saved = len(kept) - len(rest) - 1
    most = int((cover[:ALL] * drawn).sum((1, 2)).argmax())
    joined = [*rest, replace(whole, colour=most)]
    better = _unexplained(cover, joined) < _unexplained(cover, kept) + FAINTEST * saved
    return joined if better else kept


def _within(fit: Fit, drawn: Tensor) -> bool:
    """Whether most of a fitted thing lies in what is drawn."""
    own = _drawn([fit])[0]
    return float((own * drawn).sum()) > 0.5 * float(own.sum())


def _unexplained(cover: Tensor, fits: list[Fit]) -> float:
    """Returns the squared error of fits, in grid pixels, as coverage of any colour."""
    drawn = _drawn(fits).amax(0) if fits else torch.zeros(GRID, GRID)
    return float((cover[ALL] - drawn).square().sum())


def _drawn(fits: list[Fit]) -> Tensor:
    """Renders fits on the whole grid: (N, 64, 64)."""
    shape = torch.tensor([f.shape for f in fits])
    middle = torch.tensor([GRID // 2, GRID // 2, 0, 0])
    return _render(shape, torch.stack([f.params for f in fits]) - middle, GRID)


def _residual(rgb: Tensor, ground: Tensor, fits: list[Fit]) -> float:
    """Returns the share of pixels that background and fitted things do not explain."""
    image = ground
    if fits:
        for fit, cover in zip(fits, _drawn(fits), strict=True):
            image = torch.lerp(image, palette(rgb.device)[fit.colour][:, None, None], cover)
    return float(((rgb - image).abs().amax(0) > UNEXPLAINED).float().mean())


def _thing(fit: Fit) -> Thing:
    x, y, logr, _ = fit.params.tolist()
    shape = SHAPES[fit.shape] if fit.misfit < MISFIT else None
    x, y, radius = 2 * x + 1, 2 * y + 1, 2 * float(np.exp(logr))
    box = (max(x - radius, 0), max(y - radius, 0), min(x + radius, SIZE), min(y + radius, SIZE))
    return Thing(shape, list(COLOURS)[fit.colour], (x, y), box)
