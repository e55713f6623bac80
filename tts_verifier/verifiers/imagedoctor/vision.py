"""Qwen2.5-VL's vision tower over a batch: stock weights and blocks, batched attention.

transformers runs attention once per window and image; here all windows of all images of one
size go through one call. Equal to the stock forward up to rounding (there is a test).
Source: Qwen2.5-VL technical report (Bai et al. 2025), section 2.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

Grid = tuple[int, int]
"""(rows, columns) of patches."""

ROTARY_BASE = 10000.0


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How the tokens of one grid attend; tokens are in the processor's order.

    `cos`, `sin`: (S, head size). `slots`: (windows, longest), the token in each place of each
    window; `filled`: the same shape, False where a ragged window has no token, None if there
    is none; `place`: (S,), where in the flattened windows each token sits.
    """

    cos: Tensor
    sin: Tensor
    slots: Tensor
    filled: Tensor | None
    place: Tensor


@lru_cache(maxsize=64)
def plan(grid: Grid, merge: int, window: int, head: int, device: torch.device) -> Plan:
    """Lays out a grid of patches; `window` in merged cells a side, `head` the head's size."""
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = _coordinates(grid, merge)
        across = -(-grid[1] // merge // window)
        number = (rows // merge // window) * across + columns // merge // window
        order = torch.argsort(number, stable=True)
        sizes = torch.bincount(number)
        longest = int(sizes.max())
        starts = torch.cumsum(sizes, 0) - sizes
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - starts[number[order]]
        place = number * longest + rank
        slots = torch.zeros(len(sizes) * longest, dtype=torch.long)
        slots[place] = torch.arange(len(order))
        filled = torch.zeros(len(sizes) * longest, dtype=torch.bool)
        filled[place] = True
        step = torch.arange(0, head // 2, 2, dtype=torch.float) / (head // 2)
        angle = torch.stack([rows, columns], 1)[..., None].float() * (1.0 / ROTARY_BASE**step)
        both = torch.cat([angle.flatten(1)] * 2, dim=-1)
        return Plan(
            both.cos().to(device),
            both.sin().to(device),
            slots.view(-1, longest).to(device),
            None if bool(filled.all()) else filled.view(-1, longest).to(device),
            place.to(device),
        )


def _coordinates(grid: Grid, merge: int) -> tuple[Tensor, Tensor]:
    """Returns row and column of each patch, in the order of cells and, in a cell, row by row."""
    h, w = grid
    shape = (h // merge, merge, w // merge, merge)
    rows = torch.arange(h)[:, None].expand(h, w).reshape(shape)
    columns = torch.arange(w)[None, :].expand(h, w).reshape(shape)
    return rows.transpose(1, 2).flatten(), columns.transpose(1, 2).flatten()


def features(tower: nn.Module, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Runs the tower on images of any sizes.

    Args:
        tower: transformers' `Qwen2_5_VisionTransformerPretrainedModel`.
        pixels: (patches of all images, values a patch), in the processor's order.
        grids: each image's patches.

    Returns:
        Merged features of all images, (cells of all images, hidden), each in raster order.
    """
    if len(set(grids)) == 1:
        batch = pixels.view(len(grids), -1, pixels.shape[-1])
        return _run(cast(Any, tower), batch, grids[0]).flatten(0, 1)
    pieces = torch.split(pixels, [h * w for h, w in grids])
    cells: list[Tensor] = [pixels] * len(grids)
    for grid in dict.fromkeys(grids):
        members = [i for i, g in enumerate(grids) if g == grid]
        batch = torch.stack([pieces[i] for i in members])
        for i, part in zip(members, _run(cast(Any, tower), batch, grid), strict=True):
            cells[i] = part
    return torch.cat(cells)


def _run(tower: Any, pixels: Tensor, grid: Grid) -> Tensor:
    """(images, patches, values) of one grid -> (images, cells, hidden)."""
    kernel = tower.patch_embed.proj.weight
    x = linear(pixels.to(kernel.dtype), kernel.flatten(1))
    merge = tower.spatial_merge_size
    window = tower.window_size // merge // tower.patch_size
    head = x.shape[-1] // tower.config.num_heads
    layout = plan(grid, merge, window, head, x.device)
    for i, block in enumerate(tower.blocks):
        whole = i in tower.fullatt_block_indexes
        x = x + _attend(block.attn, block.norm1(x), layout, whole=whole)
        x = x + block.mlp(block.norm2(x))
    return cast(Tensor, tower.merger(x).view(len(pixels), -1, tower.config.out_hidden_size))


def _attend(attention: Any, x: Tensor, layout: Plan, *, whole: bool) -> Tensor:
    """(images, S, width) -> the same; over all tokens, or within each window."""
    images, length, width = x.shape
    heads = attention.num_heads
    q, k, v = attention.qkv(x).view(images, length, 3, heads, -1).unbind(2)
    q, k = _rotate(q, layout), _rotate(k, layout)
    if whole:
        mask = None
    else:
        q, k, v = (t[:, layout.slots].flatten(0, 1) for t in (q, k, v))
        mask = _mask(layout, images)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    out = out.reshape(images, -1, width)
    return cast(Tensor, attention.proj(out if whole else out[:, layout.place]))


def _mask(layout: Plan, images: int) -> Tensor | None:
    if layout.filled is None:
        return None
    return layout.filled[:, None, None, :].repeat(images, 1, 1, 1)


def _rotate(x: Tensor, layout: Plan) -> Tensor:
    """Rotates (images, S, heads, size) by each token's row and column, in float32."""
    cos, sin = layout.cos[:, None], layout.sin[:, None]
    half = x.shape[-1] // 2
    wide = x.float()
    turned = torch.cat((-wide[..., half:], wide[..., :half]), dim=-1)
    return (wide * cos + turned * sin).to(x.dtype)
