"""Triton kernels that choose or draw a token for each row of a large vocabulary.

Sorting a vocabulary of 150,000 tokens would take a third of a decode step. Only the last token
that stays is needed, so top-k and top-p search for its score digit by digit (radix selection):
each pass over the scores adds up, for each value of the next digit, the tokens or the probability
above it. The vocabulary is cut into blocks that are the same for any number of rows, and all sums
have a fixed order, so a row's draw does not depend on its batch. Import this module only where
Triton is installed.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

VOCABULARY_BLOCK: Final = 4096
"""Tokens that one program reads."""
KEY_BITS: Final = 24
"""Bits of a key: a score's distance from the highest one, 0 to 32 in steps of 2**-19. Scores of
one step, which is about float32's rounding of a score, stay or fall together."""
DIGIT_BITS: Final = 4
"""Bits that one pass finds."""

_KEY_COUNT = tl.constexpr(2**KEY_BITS)
_STEPS = tl.constexpr(2.0 ** (KEY_BITS - 5))
_DIGITS = tl.constexpr(2**DIGIT_BITS)
_LOWEST = tl.constexpr(-1e30)
_WARPS = 8


@triton.jit
def _load_block(scores, row, block, columns, BLOCK: tl.constexpr):
    """Loads a block of a row's scores; -inf behind the last one."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    place = scores + row.to(tl.int64) * columns + at
    return tl.load(place, mask=at < columns, other=float("-inf")).to(tl.float32)


@triton.jit
def _best_of_block_kernel(
    logits, used, best, tokens, columns, blocks, penalty,
    PENALISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Finds the first token of a block with the highest logit."""
    row, block = tl.program_id(0), tl.program_id(1)
    s = _load_block(logits, row, block, columns, BLOCK)
    at = block * BLOCK + tl.arange(0, BLOCK)
    if PENALISE:
        is_used = tl.load(used + row.to(tl.int64) * columns + at, mask=at < columns, other=0)
        # Division as torch rounds it, so that equal logits stay equal.
        penalised = tl.where(s < 0, s * penalty, tl.div_rn(s, penalty))
        s = tl.where(is_used != 0, penalised, s)
    top = tl.max(s, 0)
    tl.store(best + row * blocks + block, top)
    tl.store(tokens + row * blocks + block, tl.min(tl.where(s == top, at, columns - 1), 0))


@triton.jit
def _highest_of(highest, row, blocks, BLOCKS: tl.constexpr):
    """Returns the highest score of a row, from those of its blocks."""
    b = tl.arange(0, BLOCKS)
    return tl.max(tl.load(highest + row * blocks + b, mask=b < blocks, other=float("-inf")), 0)


@triton.jit
def _keys_of(scores, top, scale):
    """Returns the keys of scores: small for high ones."""
    return tl.minimum((top - scores) * scale * _STEPS, _KEY_COUNT - 1.0).to(tl.int32)


@triton.jit
def _block_sums_kernel(
    scores, highest, sums, columns, blocks, scale, BLOCK: tl.constexpr
):  # fmt: skip
    """Finds the highest score of a block, and sums its weights relative to that one."""
    row, block = tl.program_id(0), tl.program_id(1)
    s = _load_block(scores, row, block, columns, BLOCK)
    # Finite, because a block may hold impossible tokens only.
    top = tl.maximum(tl.max(s, 0), _LOWEST)
    weights = tl.exp((s - top) * scale)
    tl.store(highest + row * blocks + block, top)
    tl.store(sums + row * blocks + block, tl.sum(weights, 0))


@triton.jit
def _next_bound(parts, bounds, row, blocks, limit, SHARE: tl.constexpr, SHIFT: tl.constexpr,
                BLOCKS: tl.constexpr):  # fmt: skip
    """Adds the digit at SHIFT that a pass has found to the bound that it was given."""
    b, d = tl.arange(0, BLOCKS), tl.arange(0, _DIGITS)
    at = (row * blocks + b[:, None]) * _DIGITS + d[None, :]
    above = tl.sum(tl.load(parts + at, mask=(b < blocks)[:, None], other=0.0), 0)
    # The last column holds the sum of all.
    total = tl.sum(tl.where(d == _DIGITS - 1, above, 0.0), 0)
    most = limit * total if SHARE else limit
    digit = tl.sum(((above < most) & (d < _DIGITS - 1)).to(tl.int32), 0)
    return tl.load(bounds + row) + (digit << SHIFT)


@triton.jit
def _digit_kernel(
    scores, highest, allowed, parts_before, bounds_before, parts, bounds, columns, blocks, scale,
    limit, SHARE: tl.constexpr, SHIFT: tl.constexpr, FIRST: tl.constexpr,
    STEP: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums what lies above each value of the digit at SHIFT, after it has found the one before.

    SHARE: sums probabilities, of which `limit` is a share; otherwise it counts up to `limit`.
    """
    row, block = tl.program_id(0), tl.program_id(1)
    if FIRST:
        bound = tl.full((), 0, tl.int32)
    else:
        bound = _next_bound(parts_before, bounds_before, row, blocks, limit, SHARE, SHIFT + STEP,
                            BLOCKS)  # fmt: skip
    if block == 0:
        tl.store(bounds + row, bound)
    s = _load_block(scores, row, block, columns, BLOCK)
    top = _highest_of(highest, row, blocks, BLOCKS)
    keys = _keys_of(s, top, scale)
    weights = tl.exp((s - top) * scale) if SHARE else (s > float("-inf")).to(tl.float32)
    weights = tl.where(keys <= tl.load(allowed + row), weights, 0.0)
    out = parts + (row * blocks + block) * _DIGITS
    for digit in tl.static_range(1, _DIGITS):
        above = tl.where(keys < bound + (digit << SHIFT), weights, 0.0)
        tl.store(out + digit - 1, tl.sum(above, 0))
    tl.store(out + _DIGITS - 1, tl.sum(weights, 0))


@triton.jit
def _kept_sums_kernel(
    scores, highest, parts, bounds, kept, sums, columns, blocks, scale, limit,
    SHARE: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Finds the last digit, and sums the weights that stay, relative to the row's highest."""
    row, block = tl.program_id(0), tl.program_id(1)
    bound = _next_bound(parts, bounds, row, blocks, limit, SHARE, 0, BLOCKS)
    if block == 0:
        tl.store(kept + row, bound)
    s = _load_block(scores, row, block, columns, BLOCK)
    top = _highest_of(highest, row, blocks, BLOCKS)
    weights = tl.where(_keys_of(s, top, scale) <= bound, tl.exp((s - top) * scale), 0.0)
    tl.store(sums + row * blocks + block, tl.sum(weights, 0))


@triton.jit
def _first_above(weights, draw, N: tl.constexpr):
    """Returns the first place with a weight at which the running sum exceeds a draw."""
    at = tl.arange(0, N)
    running = tl.cumsum(weights, 0)
    goal = draw * tl.max(running, 0)
    last = tl.max(tl.where(weights > 0, at, 0), 0)
    return tl.min(tl.where((running > goal) & (weights > 0), at, last), 0)


@triton.jit
def _draw_kernel(
    scores, highest, sums, kept, draws, out, columns, blocks, scale,
    CUT: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Draws a block of one row, and a token in it."""
    row = tl.program_id(0)
    b = tl.arange(0, BLOCKS)
    in_row = b < blocks
    top_of = tl.load(highest + row * blocks + b, mask=in_row, other=float("-inf"))
    top = tl.max(top_of, 0)
    weights = tl.load(sums + row * blocks + b, mask=in_row, other=0.0)
    if not CUT:
        weights *= tl.exp((top_of - top) * scale)
    block = _first_above(weights, tl.load(draws + 2 * row), BLOCKS)
    s = _load_block(scores, row, block, columns, BLOCK)
    weights = tl.exp((s - top) * scale)
    if CUT:
        weights = tl.where(_keys_of(s, top, scale) <= tl.load(kept + row), weights, 0.0)
    place = _first_above(weights, tl.load(draws + 2 * row + 1), BLOCK)
    tl.store(out + row, (block * BLOCK + place).to(tl.int64))


class _Rows:
    """Scores with the highest one and the sum of weights of each of their blocks."""

    def __init__(self, scores: Tensor, temperature: float) -> None:
        self.scores, self.scale = scores.contiguous(), 1.0 / temperature
        self.rows, self.columns = scores.shape
        self.blocks = triton.cdiv(self.columns, VOCABULARY_BLOCK)
        self.grid = (self.rows, self.blocks)
        self.highest, self.sums = (
            scores.new_empty(self.grid, dtype=torch.float32) for _ in range(2)
        )
        self.sizes: dict[str, Any] = {
            "BLOCKS": triton.next_power_of_2(self.blocks),
            "BLOCK": VOCABULARY_BLOCK,
            "num_warps": _WARPS,
        }
        _block_sums_kernel[self.grid](
            self.scores, self.highest, self.sums, self.columns, self.blocks, self.scale,
            BLOCK=VOCABULARY_BLOCK, num_warps=_WARPS,
        )  # fmt: skip

    def keep(self, allowed: Tensor, limit: float, *, share: bool) -> Tensor:
        """Returns the keys (rows,) up to which tokens stay, and sums the weights of those.

        Args:
            allowed: (rows,), keys above which no token counts.
            limit: how many tokens stay, or which share of the probability.
            share: which of both `limit` is.
        """
        passes = KEY_BITS // DIGIT_BITS
        parts = self.highest.new_empty(passes, *self.grid, 2**DIGIT_BITS)
        bounds = allowed.new_empty(passes, self.rows)
        for i in range(passes):
            before = max(i - 1, 0)
            _digit_kernel[self.grid](
                self.scores, self.highest, allowed, parts[before], bounds[before], parts[i],
                bounds[i], self.columns, self.blocks, self.scale, limit, SHARE=share,
                SHIFT=KEY_BITS - DIGIT_BITS * (i + 1), FIRST=i == 0, STEP=DIGIT_BITS, **self.sizes,
            )  # fmt: skip
        kept = torch.empty_like(allowed)
        _kept_sums_kernel[self.grid](
            self.scores, self.highest, parts[-1], bounds[-1], kept, self.sums, self.columns,
            self.blocks, self.scale, limit, SHARE=share, **self.sizes,
        )  # fmt: skip
        return kept

    def draw(self, draws: Tensor, kept: Tensor | None) -> Tensor:
        """Draws a token for each row among those that stay; None = all."""
        out = torch.empty(self.rows, dtype=torch.long, device=draws.device)
        _draw_kernel[(self.rows,)](
            self.scores, self.highest, self.sums, out if kept is None else kept,
            draws.contiguous(), out, self.columns, self.blocks, self.scale,
            CUT=kept is not None, **self.sizes,
        )  # fmt: skip
        return out


def triton_greedy(logits: Tensor, used: Tensor, penalty: float) -> Tensor:
    """Computes `next_token.greedy_token`."""
    logits = logits.contiguous()
    rows, columns = logits.shape
    blocks = triton.cdiv(columns, VOCABULARY_BLOCK)
    best = torch.empty(rows, blocks, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, blocks, dtype=torch.long, device=logits.device)
    _best_of_block_kernel[rows, blocks](
        logits, used, best, tokens, columns, blocks, float(penalty), PENALISE=penalty != 1.0,
        BLOCK=VOCABULARY_BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    # The lowest token of the best blocks: the first of equal ones.
    is_best = best == best.amax(-1, keepdim=True)
    return tokens.masked_fill(~is_best, columns - 1).amin(-1)


def triton_sample(
    scores: Tensor, draws: Tensor, *, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Computes `next_token.sample`."""
    rows = _Rows(scores, temperature)
    kept = None
    if 0 < top_k < rows.columns:
        kept = rows.keep(_all_keys(scores), float(top_k), share=False)
    if top_p < 1:
        kept = rows.keep(_all_keys(scores) if kept is None else kept, top_p, share=True)
    return rows.draw(draws, kept)


def triton_log_probs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Computes `next_token.token_log_probs`."""
    rows = _Rows(logits, temperature)
    top = rows.highest.amax(-1, keepdim=True)
    total = (rows.sums * ((rows.highest - top) * rows.scale).exp()).sum(-1)
    distance = (logits.gather(1, tokens[:, None]).float() - top)[:, 0]
    return distance * rows.scale - total.log()


def _all_keys(scores: Tensor) -> Tensor:
    return scores.new_full((len(scores),), 2**KEY_BITS - 1, dtype=torch.int32)
