"""Qwen2.5-VL's vision tower over a batch: stock weights, batched attention, few kernels.

transformers runs attention once per window and image. Here the tokens of all images of one size
are sorted once into the order of their windows, with windows of equal length next to each other.
Attention within windows is then one call per length and moves no data. Only the few layers that
attend to whole images restore the original order in between. The result equals the stock forward
up to rounding (a test checks it). Source: Qwen2.5-VL technical report (Bai et al. 2025), section
2.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from tts_verifier.verifiers.imagedoctor.model.flash import attend
from tts_verifier.verifiers.imagedoctor.model.plain import check_linear, is_product
from tts_verifier.verifiers.imagedoctor.ops.fp8 import (
    Fp8Linear,
    Fp8Matrix,
    Matrix,
    fuse_linears,
    matrix_of,
)
from tts_verifier.verifiers.imagedoctor.ops.fused_weights import fuse_rows
from tts_verifier.verifiers.imagedoctor.ops.pointwise import rotate_heads, use_triton
from tts_verifier.verifiers.imagedoctor.ops.products import add_and_norm, gate_rows, product

Grid = tuple[int, int]
"""(rows, columns) of patches."""

ROTARY_BASE = 10000.0
"""Base of the vision tower's rotary frequencies."""
WIDTH_MULTIPLE = 16
"""Hidden widths are padded with zeros to a multiple of this: fast kernels need rows that start at
multiples of 16 bytes, in fp8 too, and the official width, 3420, is no such multiple."""
MOST_WINDOW_TOKENS = 128
MOST_HEAD_CHANNELS = 128
"""Tokens of a window and channels of a head that one program of the window kernel can hold."""


class AffineWeights(NamedTuple):
    """A matrix and its bias."""

    weight: Matrix
    """(out, in)."""
    bias: Tensor
    """(out,)."""

    def __call__(self, x: Matrix) -> Tensor:
        """Maps (M, in) to (M, out)."""
        return product(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The weights of one transformer block."""

    norm: Tensor
    """Scale of the RMS norm before attention."""
    qkv: AffineWeights
    """Queries, keys and values."""
    proj: AffineWeights
    """Output of attention."""
    second_norm: Tensor
    """Scale of the RMS norm before the MLP."""
    gate_up: AffineWeights
    """Gate and up of the MLP, one after the other; with zeros after each if fused in place."""
    down: AffineWeights
    """Output of the MLP."""
    heads: int
    """Attention heads."""
    eps: float
    """Epsilon of both norms."""


def blocks_of(tower: nn.Module, *, fuse: bool) -> list[Block]:
    """Collects the weights of the tower's blocks.

    Args:
        tower: transformers' vision tower.
        fuse: True, for inference, fuses weights in place: the tower's parameters become views of
            the fused ones, so no weight is held twice. False concatenates copies, through which
            gradients reach the parameters. Weights in fp8 are always fused.
    """
    blocks = cast(Sequence[Any], tower.blocks)
    if not fuse and not isinstance(blocks[0].attn.qkv, Fp8Linear):
        # For an engine `check_plain` has looked at the whole model.
        _check_products(tower)
        return [
            _block(block, _concatenated_gate_up(block.mlp), _affine(block.mlp.down_proj))
            for block in blocks
        ]
    # Weights that are made in inference mode could never be trained or updated in place later.
    with torch.inference_mode(False), torch.no_grad():
        return [_block(block, *_fused_mlp(block.mlp)) for block in blocks]


def _check_products(tower: nn.Module) -> None:
    """Refuses adapters, which would be trained in vain: forward passes read weights as well."""
    for name, module in tower.named_modules(prefix="visual"):
        if is_product(name):
            check_linear(module, name)


def _block(block: Any, gate_up: AffineWeights, down: AffineWeights) -> Block:
    return Block(
        norm=block.norm1.weight,
        qkv=_affine(block.attn.qkv),
        proj=_affine(block.attn.proj),
        second_norm=block.norm2.weight,
        gate_up=gate_up,
        down=down,
        heads=block.attn.num_heads,
        eps=block.norm1.variance_epsilon,
    )


def _affine(layer: Any) -> AffineWeights:
    return AffineWeights(matrix_of(layer), layer.bias)


def _concatenated_gate_up(mlp: Any) -> AffineWeights:
    gate, up = mlp.gate_proj, mlp.up_proj
    return AffineWeights(torch.cat([gate.weight, up.weight]), torch.cat([gate.bias, up.bias]))


def _fused_mlp(mlp: Any) -> tuple[AffineWeights, AffineWeights]:
    """Fuses gate and up, and pads the hidden width of all three to `WIDTH_MULTIPLE`."""
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    missing = -len(gate.weight) % WIDTH_MULTIPLE
    # Not a copy: new values of the parameters must reach an engine that is running.
    bias = fuse_rows([gate.bias, up.bias], gap=missing)
    gate_up = fuse_linears([gate, up], gap=missing)
    padded = _pad_columns(down.weight, missing)
    in_fp8 = isinstance(down, Fp8Linear)
    weight: Matrix = Fp8Matrix(padded, down.scale, down.dtype) if in_fp8 else padded
    return AffineWeights(gate_up, bias), AffineWeights(weight, down.bias)


def _pad_columns(matrix: Tensor, missing: int) -> Tensor:
    """Returns the matrix with `missing` more columns of zeros; it becomes a view of the result."""
    rows, columns = matrix.shape
    # The stride tells whether an earlier call has padded it already.
    if matrix.stride(0) != columns + missing:
        padded = matrix.new_zeros(rows, columns + missing)
        padded[:, :columns] = matrix
        matrix.data = padded[:, :columns]
    return matrix.detach().as_strided((rows, columns + missing), (columns + missing, 1))


@dataclass(frozen=True, slots=True, eq=False)
class WindowLayout:
    """The order of the T tokens (patches) of several images of one grid, sorted by window."""

    order: Tensor
    """(T,), for each place in window order, the token's index in the processor's order."""
    place: Tensor
    """(T,), the inverse: for each token in the processor's order, its place."""
    merged_place: Tensor
    """(merged tokens of all images,), for each merged token in raster order, its place among the
    merged tokens in window order."""
    cos: Tensor
    """(T, head size), the rotary cosine of each place."""
    sin: Tensor
    """(T, head size), the rotary sine of each place, negative in its first half."""
    sizes: tuple[tuple[int, int], ...]
    """(windows, tokens in each window) of each run of windows of equal length, in order."""
    starts: Tensor
    """(windows + 1,), the place of each window's first token, and T."""

    def is_one_window(self, images: int) -> bool:
        """Says whether each of so many images is a single window, whose tokens are in order."""
        return len(self.sizes) == 1 and self.sizes[0][0] == images


@lru_cache(maxsize=16)
def window_layout(
    grid: Grid, images: int, merge: int, window: int, head_size: int, device: torch.device
) -> WindowLayout:
    """Sorts the tokens of images of one grid by window.

    Args:
        grid: (rows, columns) of patches of each image.
        images: number of images.
        merge: patches along a side of one merged token.
        window: merged tokens along a side of one window.
        head_size: channels of an attention head.
        device: the device of the result.
    """
    # The result is cached, so it must serve training too, even if inference asks first.
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = _patch_coordinates(grid, merge)
        windows_across = -(-grid[1] // merge // window)
        window_of = (rows // merge // window) * windows_across + columns // merge // window
        tokens_in = torch.bincount(window_of)
        # Of one image: shorter windows first, then by number of the window.
        sort_key = tokens_in[window_of] * len(tokens_in) + window_of
        # Stable, so the patches of a merged token stay next to each other.
        image_order = torch.argsort(sort_key, stable=True)
        lengths = sorted(set(tokens_in.tolist()))
        counts = [int((tokens_in == length).sum()) for length in lengths]
        # Of all images: each run of windows of equal length holds those of every image.
        runs = image_order.split([n * length for n, length in zip(counts, lengths, strict=True)])
        first = torch.arange(images)[:, None] * len(image_order)
        order = torch.cat([(first + run).flatten() for run in runs])
        place = torch.argsort(order)
        # Half of the frequencies rotate with the row, the same ones again with the column.
        step = torch.arange(0, head_size // 2, 2, dtype=torch.float) / (head_size // 2)
        angle = torch.stack([rows, columns], 1)[..., None].float() * (1.0 / ROTARY_BASE**step)
        angle = angle.flatten(1)[order % len(image_order)]
        sizes = tuple((images * n, length) for n, length in zip(counts, lengths, strict=True))
        each = [torch.full((windows,), length) for windows, length in sizes]
        # A merged token's patches share its window, so its first patch tells the place of all.
        return WindowLayout(
            order=order.to(device),
            place=place.to(device),
            merged_place=(place[:: merge**2] // merge**2).to(device),
            cos=torch.cat([angle.cos()] * 2, -1).to(device),
            sin=torch.cat([-angle.sin(), angle.sin()], -1).to(device),
            sizes=sizes,
            starts=pad(torch.cat(each).cumsum(0), (1, 0)).to(device),
        )


def _patch_coordinates(grid: Grid, merge: int) -> tuple[Tensor, Tensor]:
    """Returns the row and the column of each patch, in the processor's order.

    In that order the patches of one merged token follow each other, row by row.
    """
    h, w = grid
    shape = (h // merge, merge, w // merge, merge)
    rows = torch.arange(h)[:, None].expand(h, w).reshape(shape)
    columns = torch.arange(w)[None, :].expand(h, w).reshape(shape)
    return rows.transpose(1, 2).flatten(), columns.transpose(1, 2).flatten()


def features(
    tower: nn.Module, pixels: Tensor, grids: Sequence[Grid], blocks: Sequence[Block] | None = None
) -> Tensor:
    """Runs the vision tower.

    Args:
        tower: transformers' Qwen2_5_VisionTransformerPretrainedModel.
        pixels: (patches of all images, values of a patch), in the processor's order.
        grids: (rows, columns) in patches of each image.
        blocks: the result of `blocks_of`; None = unfused copies, for training.

    Returns:
        (merged tokens of all images, hidden), merged features, each image in raster order.
    """
    blocks = blocks_of(tower, fuse=False) if blocks is None else blocks
    if len(set(grids)) == 1:
        return _features_of_one_grid(tower, blocks, pixels, grids).flatten(0, 1)
    pixels_of = torch.split(pixels, [h * w for h, w in grids])
    features_of: list[Tensor] = [pixels] * len(grids)
    for grid in dict.fromkeys(grids):
        members = [i for i, g in enumerate(grids) if g == grid]
        batch = torch.cat([pixels_of[i] for i in members])
        computed = _features_of_one_grid(tower, blocks, batch, [grid] * len(members))
        for i, image_features in zip(members, computed, strict=True):
            features_of[i] = image_features
    return torch.cat(features_of)


def _features_of_one_grid(
    tower: Any, blocks: Sequence[Block], pixels: Tensor, grids: Sequence[Grid]
) -> Tensor:
    """(patches of all images, values) of equal grids -> (images, merged tokens, hidden)."""
    # The patch embedding is a convolution whose stride is its kernel: a matrix product.
    kernel = tower.patch_embed.proj.weight
    x = linear(pixels.to(kernel.dtype), kernel.flatten(1))
    merge = tower.spatial_merge_size
    window = tower.window_size // merge // tower.patch_size
    head_size = x.shape[-1] // tower.config.num_heads
    layout = window_layout(grids[0], len(grids), merge, window, head_size, x.device)
    x, added = x[layout.order], None
    for i, block in enumerate(blocks):
        whole = i in tower.fullatt_block_indexes and not layout.is_one_window(len(grids))
        images = len(grids) if whole else 0
        x, normed = add_and_norm(x, added, block.norm, block.eps, block.qkv.weight)
        added = _attend(block, normed, layout, images)
        x, normed = add_and_norm(x, added, block.second_norm, block.eps, block.gate_up.weight)
        added = block.down(gate_rows(block.gate_up(normed), block.down.weight))
    x = x if added is None else x + added
    merged = tower.merger(x)[layout.merged_place]
    return cast(Tensor, merged.view(len(grids), -1, tower.config.out_hidden_size))


def _attend(block: Block, x: Matrix, layout: WindowLayout, images: int) -> Tensor:
    """Attends over each of `images` whole images, or within windows if 0; keeps (T, width)."""
    heads = block.qkv(x).unflatten(-1, (3 * block.heads, -1))
    if not images and _fits_kernel(heads, layout):
        from tts_verifier.verifiers.imagedoctor.ops import attention_kernels

        return block.proj(
            attention_kernels.triton_attend_windows(
                heads, (layout.cos, layout.sin), layout.starts, layout.sizes[-1][1]
            )
        )
    qkv = rotate_heads(heads, layout.cos, layout.sin, 2 * block.heads)
    qkv = qkv.unflatten(1, (3, block.heads))
    # In window order an image's tokens are spread over the runs, so they are put back first.
    if images:
        return block.proj(_attend_within_groups(qkv[layout.place], images)[layout.order])
    runs = qkv.split([windows * length for windows, length in layout.sizes])
    windows_of = [windows for windows, _ in layout.sizes]
    attended = [_attend_within_groups(run, n) for run, n in zip(runs, windows_of, strict=True)]
    return block.proj(torch.cat(attended))


def _fits_kernel(heads: Tensor, layout: WindowLayout) -> bool:
    """Says whether the kernel for windows takes heads (T, 3 * heads, size)."""
    return (
        use_triton(heads)
        and layout.sizes[-1][1] <= MOST_WINDOW_TOKENS
        and heads.shape[-1] <= MOST_HEAD_CHANNELS
    )


def _attend_within_groups(qkv: Tensor, groups: int) -> Tensor:
    """(M, 3, heads, size) -> (M, heads * size): attention within each of the equal groups."""
    q, k, v = qkv.unflatten(0, (groups, -1)).permute(2, 0, 3, 1, 4)
    out = attend(q, k, v)
    return out.transpose(1, 2).reshape(len(qkv), -1)
