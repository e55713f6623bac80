"""Qwen2.5-VL's vision tower over a batch: stock weights, batched attention, few kernels.

transformers runs attention once per window and image. Here the tokens of all images of one
size are put once into the order of their windows, windows of equal size next to each other,
so that attention within windows is one call for each size and moves nothing; only the few
layers that attend to whole images put them back in between. Equal to the stock forward up to
rounding (there is a test). Source: Qwen2.5-VL technical report (Bai et al. 2025), section
2.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

from tts_verifier.verifiers.imagedoctor.ops.fused_weights import fuse_rows
from tts_verifier.verifiers.imagedoctor.ops.pointwise import rotate_heads, silu_gate

Grid = tuple[int, int]
"""(rows, columns) of patches."""

ROTARY_BASE = 10000.0
ALIGNED = 8
"""Inner widths are filled up with zeros to a multiple of this; fast kernels want 16 bytes."""


class Product(NamedTuple):
    """A matrix and its bias."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Multiplies (…, in) -> (…, out)."""
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One block's weights; `gate_up` joins two, with zeros after each where `join` was asked."""

    norm: Tensor
    qkv: Product
    proj: Product
    second_norm: Tensor
    gate_up: Product
    down: Product
    heads: int
    eps: float


def blocks_of(tower: nn.Module, *, join: bool) -> list[Block]:
    """Lists the blocks' weights.

    Args:
        tower: transformers' vision tower.
        join: for inference: the parameters become views of the joined ones, without copies.
            Otherwise they are joined anew, and gradients reach them.
    """
    blocks = cast(Sequence[Any], tower.blocks)
    if not join:
        return [
            _block(block, _beside(block.mlp), _product(block.mlp.down_proj)) for block in blocks
        ]
    with torch.inference_mode(False), torch.no_grad():
        return [_block(block, *_aligned(block.mlp)) for block in blocks]


def _block(block: Any, gate_up: Product, down: Product) -> Block:
    return Block(
        norm=block.norm1.weight,
        qkv=_product(block.attn.qkv),
        proj=_product(block.attn.proj),
        second_norm=block.norm2.weight,
        gate_up=gate_up,
        down=down,
        heads=block.attn.num_heads,
        eps=block.norm1.variance_epsilon,
    )


def _product(layer: Any) -> Product:
    return Product(layer.weight, layer.bias)


def _beside(mlp: Any) -> Product:
    gate, up = mlp.gate_proj, mlp.up_proj
    return Product(torch.cat([gate.weight, up.weight]), torch.cat([gate.bias, up.bias]))


def _aligned(mlp: Any) -> tuple[Product, Product]:
    """Joins gate and up, all three filled up to `ALIGNED`."""
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    short = -len(gate.weight) % ALIGNED
    bias = torch.cat([gate.bias, gate.bias.new_zeros(short), up.bias, up.bias.new_zeros(short)])
    gate_up = fuse_rows([gate.weight, up.weight], gap=short)
    return Product(gate_up, bias), Product(_widened(down.weight, short), down.bias)


def _widened(matrix: nn.Parameter, short: int) -> Tensor:
    """Returns the matrix with `short` more columns of zeros; it becomes a view of that."""
    rows, columns = matrix.shape
    if matrix.stride(0) != columns + short:
        wide = matrix.new_zeros(rows, columns + short)
        wide[:, :columns] = matrix
        matrix.data = wide[:, :columns]
    return matrix.detach().as_strided((rows, columns + short), (columns + short, 1))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How T tokens of images of one grid are laid out, T = images x S.

    `order`: (T,), of the processor's order, the token in each place; `place`: (T,), the
    reverse; `cells`: (cells of all images,), the place of each merged cell. `cos`, `sin`:
    (T, head size), of each place, `sin` negative in its first half. `sizes`: (windows, tokens
    in each) of the groups of windows of equal size, in order.
    """

    order: Tensor
    place: Tensor
    cells: Tensor
    cos: Tensor
    sin: Tensor
    sizes: tuple[tuple[int, int], ...]


@lru_cache(maxsize=16)
def plan(grid: Grid, images: int, merge: int, window: int, head: int, device: torch.device) -> Plan:
    """Lays out images of one grid; `window` in merged cells a side, `head` the head's size."""
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = _coordinates(grid, merge)
        across = -(-grid[1] // merge // window)
        number = (rows // merge // window) * across + columns // merge // window
        tokens = torch.bincount(number)
        one = torch.argsort(tokens[number] * len(tokens) + number, stable=True)
        lengths = sorted(set(tokens.tolist()))
        counts = [int((tokens == length).sum()) for length in lengths]
        first = torch.arange(images)[:, None] * len(one)
        parts = one.split([n * length for n, length in zip(counts, lengths, strict=True)])
        order = torch.cat([(first + part).flatten() for part in parts])
        place = torch.argsort(order)
        step = torch.arange(0, head // 2, 2, dtype=torch.float) / (head // 2)
        angle = torch.stack([rows, columns], 1)[..., None].float() * (1.0 / ROTARY_BASE**step)
        angle = angle.flatten(1)[order % len(one)]
        return Plan(
            order.to(device),
            place.to(device),
            (place[:: merge**2] // merge**2).to(device),
            torch.cat([angle.cos()] * 2, -1).to(device),
            torch.cat([-angle.sin(), angle.sin()], -1).to(device),
            tuple((images * n, length) for n, length in zip(counts, lengths, strict=True)),
        )


def _coordinates(grid: Grid, merge: int) -> tuple[Tensor, Tensor]:
    """Returns row and column of each patch, in the order of cells and, in a cell, row by row."""
    h, w = grid
    shape = (h // merge, merge, w // merge, merge)
    rows = torch.arange(h)[:, None].expand(h, w).reshape(shape)
    columns = torch.arange(w)[None, :].expand(h, w).reshape(shape)
    return rows.transpose(1, 2).flatten(), columns.transpose(1, 2).flatten()


def features(
    tower: nn.Module, pixels: Tensor, grids: Sequence[Grid], blocks: Sequence[Block] | None = None
) -> Tensor:
    """Runs the tower.

    Args:
        tower: transformers' Qwen2_5_VisionTransformerPretrainedModel.
        pixels: (patches of all images, values a patch), in the processor's order.
        grids: each image's patches.
        blocks: from `blocks_of`; None = as they are, for training.

    Returns:
        Merged features of all images, (cells of all images, hidden), each in raster order.
    """
    blocks = blocks_of(tower, join=False) if blocks is None else blocks
    if len(set(grids)) == 1:
        return _run(tower, blocks, pixels, grids).flatten(0, 1)
    pieces = torch.split(pixels, [h * w for h, w in grids])
    cells: list[Tensor] = [pixels] * len(grids)
    for grid in dict.fromkeys(grids):
        members = [i for i, g in enumerate(grids) if g == grid]
        batch = torch.cat([pieces[i] for i in members])
        parts = _run(tower, blocks, batch, [grid] * len(members))
        for i, part in zip(members, parts, strict=True):
            cells[i] = part
    return torch.cat(cells)


def _run(tower: Any, blocks: Sequence[Block], pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
    """(patches of all images, values) of one grid -> (images, cells, hidden)."""
    kernel = tower.patch_embed.proj.weight
    x = linear(pixels.to(kernel.dtype), kernel.flatten(1))
    merge = tower.spatial_merge_size
    window = tower.window_size // merge // tower.patch_size
    head = x.shape[-1] // tower.config.num_heads
    layout = plan(grids[0], len(grids), merge, window, head, x.device)
    x = x[layout.order]
    for i, block in enumerate(blocks):
        whole = len(grids) if i in tower.fullatt_block_indexes else 0
        x = x + _attend(block, rms_norm(x, x.shape[-1:], block.norm, block.eps), layout, whole)
        normed = rms_norm(x, x.shape[-1:], block.second_norm, block.eps)
        x = x + block.down(silu_gate(block.gate_up(normed)))
    merged = tower.merger(x)[layout.cells]
    return cast(Tensor, merged.view(len(grids), -1, tower.config.out_hidden_size))


def _attend(block: Block, x: Tensor, layout: Plan, whole: int) -> Tensor:
    """(T, width) -> the same; over each of `whole` images, or, if 0, within each window."""
    heads = block.qkv(x).unflatten(-1, (3 * block.heads, -1))
    qkv = rotate_heads(heads, layout.cos, layout.sin, 2 * block.heads)
    qkv = qkv.unflatten(1, (3, block.heads))
    if whole:
        return block.proj(_within(qkv[layout.place], whole)[layout.order])
    parts = qkv.split([windows * length for windows, length in layout.sizes])
    sizes = [windows for windows, _ in layout.sizes]
    return block.proj(torch.cat([_within(p, n) for p, n in zip(parts, sizes, strict=True)]))


def _within(qkv: Tensor, groups: int) -> Tensor:
    """(M, 3, heads, size) -> (M, heads * size): attention within each of equal groups."""
    q, k, v = qkv.unflatten(0, (groups, -1)).permute(2, 0, 3, 1, 4)
    out = scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(len(qkv), -1)
