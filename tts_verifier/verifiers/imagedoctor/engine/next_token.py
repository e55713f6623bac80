"""Choosing the next token: the repetition penalty, the choice or draw, recorded probabilities.

A token is drawn by inverting the distribution function, with numbers that depend on the request's
seed and the token's place in the reply alone. They are made on the host before the reply begins,
so a decode step has no generator whose state its batch could change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from tts_verifier.verifiers.imagedoctor.ops.pointwise import use_triton
from tts_verifier.verifiers.imagedoctor.requests import Sampling

ChooseToken = Callable[[Tensor], Tensor]
"""Logits (sequences, choices), float32 -> each sequence's choice (sequences,), int64.

It runs inside a captured CUDA graph, so it must neither read values on the host nor bring any
from there, unless the engine was told not to capture."""

DRAW_BLOCK: Final = 4096
"""Tokens of a block of the vocabulary: first a block is drawn, then a token in it. Kernels take
the same (`sampling_kernels.VOCABULARY_BLOCK`), so that they draw the same tokens."""
_BITS: Final = 24
"""Random bits of a draw: as many as a float32 in [0, 1) holds exactly."""


def greedy(logits: Tensor) -> Tensor:
    """Chooses the token with the highest logit, the first of equal ones."""
    return logits.argmax(-1)


def greedy_token(logits: Tensor, used: Tensor, penalty: float) -> Tensor:
    """Chooses each sequence's token with the highest penalised logit, the first of equal ones.

    Args:
        logits: (sequences, vocabulary).
        used: see `penalise`; not read without a penalty.
        penalty: see `penalise`.

    Returns:
        (sequences,), int64.
    """
    if use_triton(logits):
        from tts_verifier.verifiers.imagedoctor.ops import sampling_kernels

        return sampling_kernels.triton_greedy(logits, used, penalty)
    return greedy(penalise(logits.float(), used, penalty))


def draws_of(seeds: Sequence[int], tokens: int) -> NDArray[np.float32]:
    """Returns what replies are drawn with, from their seeds alone.

    Source: Philox4x64-10 (Salmon et al. 2011), counted up from 0 with the seed as its key.

    Args:
        seeds: 0 to 2**64 - 1.
        tokens: the most tokens of a reply; the first ones are the same for any number.

    Returns:
        (seeds, tokens, 2), uniform in [0, 1): for each token the draw of its block, and that of
        its place in the block.
    """
    # The raw bits, because numpy keeps their stream the same in all versions.
    raw = [np.random.Philox(key=int(seed)).random_raw(2 * tokens) for seed in seeds]
    bits = (np.stack(raw) >> np.uint64(64 - _BITS)).astype(np.float32)
    return bits.reshape(len(seeds), tokens, 2) * np.float32(2.0**-_BITS)


def sample(scores: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """Draws a token for each sequence.

    A row's result depends neither on the other rows nor on how many there are.

    Args:
        scores: (sequences, choices), float32, after the penalty.
        draws: (sequences, 2), uniform in [0, 1), see `draws_of`.
        sampling: has a temperature above 0.

    Returns:
        (sequences,), int64.
    """
    if use_triton(scores):
        from tts_verifier.verifiers.imagedoctor.ops import sampling_kernels

        return sampling_kernels.triton_sample(
            scores,
            draws,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
    # The highest score becomes 0 first, so that no temperature makes two of them infinite.
    scores = (scores - scores.amax(-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        lowest = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < lowest, -math.inf)
    probs = scores.softmax(-1)
    if sampling.top_p < 1:
        probs = keep_top_p(probs, sampling.top_p)
    blocks = pad(probs, (0, -probs.shape[-1] % DRAW_BLOCK)).unflatten(-1, (-1, DRAW_BLOCK))
    block = _invert(blocks.sum(-1), draws[:, 0])
    in_block = blocks[torch.arange(len(blocks), device=blocks.device), block]
    return block * DRAW_BLOCK + _invert(in_block, draws[:, 1])


def keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Sets the probabilities (N, choices) of tokens outside of the nucleus to 0."""
    falling = probs.sort(-1, descending=True).values
    # A token is in the nucleus if those that are more probable do not add up to it yet.
    before = falling.double().cumsum(-1) - falling.double()
    lowest = falling.masked_fill(before >= top_p, math.inf).amin(-1, keepdim=True)
    return probs.masked_fill(probs < lowest, 0.0)


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """Returns the first place (N,) at which the running sum of weights (N, W) exceeds a draw."""
    # float64, in which the order of the additions changes nothing that a draw could meet.
    running = weights.double().cumsum(-1)
    return (running <= draws.double()[:, None] * running[:, -1:]).sum(-1)


def token_log_probs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Returns the log-probabilities (N,), float32, of tokens (N,) under logits (N, vocabulary)."""
    if use_triton(logits):
        from tts_verifier.verifiers.imagedoctor.ops import sampling_kernels

        return sampling_kernels.triton_log_probs(logits, tokens, temperature)
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    return scaled.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def penalise(logits: Tensor, used: Tensor, penalty: float) -> Tensor:
    """Lowers the logits of tokens that a sequence has used already.

    Source: Keskar et al. 2019 (CTRL), section 4.1, with transformers' rule for negative logits.

    Args:
        logits: (sequences, vocabulary).
        used: (sequences, vocabulary), bool, True for tokens of the prompt and the reply; not read
            without a penalty.
        penalty: above 1 lowers a logit, 1 changes nothing.

    Returns:
        (sequences, vocabulary).
    """
    if penalty == 1.0:
        return logits
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(used, penalised, logits)


def group_probs(logits: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Returns the probabilities of watched tokens, each group normalised over itself.

    Args:
        logits: (sequences, vocabulary), before any penalty.
        groups: token ids of each group.

    Returns:
        (sequences, tokens of all groups) in [0, 1].
    """
    return torch.cat([logits[:, group].float().softmax(-1) for group in groups], -1)
