"""The engine's buffers: a KV cache and reply state for a fixed number of sequences.

The buffers never move in memory while they are in use, because captured decode steps hold their
addresses. They grow by being replaced, together with the captured steps. Where products are in
fp8, keys and values are 8-bit integers with a scale for each vector: attention reads half as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from tts_verifier.loading.memory import free_bytes
from tts_verifier.verifiers.imagedoctor.engine.next_token import draws_of
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.quantise import is_in_fp8
from tts_verifier.verifiers.imagedoctor.ops.e4m3 import SMALLEST_PEAK
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits

CAPACITY_BLOCK: Final = 128
"""The capacity of a KV cache is a multiple of this."""
CPU_SEQUENCES: Final = 32
"""The most sequences on a CPU, which is bound by arithmetic: more would only wait longer."""
GPU_SEQUENCES: Final = 512
"""The most sequences on a GPU. A decode step reads all weights once for all sequences; from some
300 sequences on, an H100 is bound by arithmetic there too, and more gain little."""


class LayerCache(NamedTuple):
    """Keys and values of one layer, on its device."""

    values: Tensor
    """(S, 2, kv heads, capacity, head size): keys, then values; int8 where there are scales."""
    scales: Tensor | None
    """(S, 2, kv heads, capacity, 1), float32, what the integers of each vector count in."""

    @property
    def device(self) -> torch.device:
        """The layer's device."""
        return self.values.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, sequences first and tokens last but one."""
        return (self.values,) if self.scales is None else (self.values, self.scales)

    def rounded(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """Returns what `tensors` hold for vectors (…, size)."""
        if self.scales is None:
            return (vectors,)
        wide = vectors.float()
        peak = wide.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_PEAK)
        return (wide * (127.0 / peak) + 0.5).floor().to(torch.int8), peak / 127.0

    def read(self, sequences: int, tokens: int, dtype: torch.dtype) -> Tensor:
        """Returns the first tokens of the first sequences."""
        values, *scales = (tensor[:sequences, ..., :tokens, :] for tensor in self.tensors)
        return (values * scales[0]).to(dtype) if scales else values


@dataclass(slots=True, eq=False)
class SequenceBuffers:
    """All state of S sequences; H = hidden size, M = `max_new_tokens`, W = watched tokens.

    Decode steps compute on sequences that are not live as well, but add nothing to their replies.
    """

    kv_cache: list[LayerCache]
    """Of each layer."""
    hidden: Tensor
    """(S, H), the state after the final norm that predicts the next token."""
    position: Tensor
    """(S,), the next token's M-RoPE position."""
    length: Tensor
    """(S,), the tokens in the KV cache."""
    live: Tensor
    """(S,), bool, whether a reply is being generated."""
    count: Tensor
    """(S,), the tokens in `tokens`."""
    tokens: Tensor
    """(S, M), the reply so far."""
    map_states: Tensor
    """(S, 2, H), the states that predicted the first misalignment and artifact tokens."""
    has_map: Tensor
    """(S, 2), bool, whether the reply has those tokens."""
    probs: Tensor
    """(S, M, W), the watched tokens' probabilities at each token."""
    used: Tensor
    """(S, vocabulary), bool, the tokens that the penalty applies to; (S, 0) without a penalty."""
    draws: Tensor
    """(S, M, 2), what chooses each token of the reply, see `next_token.draws_of`; (S, 0, 2) if
    decoding is greedy."""
    log_probs: Tensor
    """(S, M), the chosen tokens' log-probabilities, NaN at forced ones; (S, 0) if not asked for."""

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return len(self.length)

    @property
    def capacity(self) -> int:
        """How many tokens a sequence's KV cache can hold."""
        return self.kv_cache[0].values.shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.all_buffers())

    def fits(self, sequences: int, tokens: int) -> bool:
        """Says whether these are the buffers of so many sequences of up to so many tokens."""
        return self.sequences == sequences and self.capacity >= tokens

    def reply_state(self) -> tuple[Tensor, ...]:
        """Returns all buffers but the KV cache, sequences first."""
        progress = (self.hidden, self.position, self.length, self.live, self.count, self.tokens)
        recorded = (self.map_states, self.has_map, self.probs, self.used)
        return (*progress, *recorded, self.draws, self.log_probs)

    def all_buffers(self) -> tuple[Tensor, ...]:
        """Returns all buffers, sequences first."""
        return (*self._cache_tensors(), *self.reply_state())

    def _cache_tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for cache in self.kv_cache for tensor in cache.tensors)

    def start(self, at: Tensor, ids: Tensor, hidden: Tensor, length: Tensor, shift: Tensor) -> None:
        """Begins the replies of sequences whose prompts are in the KV cache.

        Args:
            at: (N,), the sequences.
            ids: (N, T), the prompts, padded with tokens that each prompt has anyway.
            hidden: (N, H), the states that predict the first tokens of the replies.
            length: (N,), tokens of each prompt.
            shift: (N,), position minus index of the tokens that follow.
        """
        self.hidden[at] = hidden
        self.position[at] = length + shift
        self.length[at] = length
        # Assigning a number to `[at]` would copy it from the host, which would wait for the device.
        self.live.index_fill_(0, at, True)
        self.count.index_fill_(0, at, 0)
        self.has_map.index_fill_(0, at, False)
        self.map_states.index_fill_(0, at, 0)
        if self.used.shape[1]:
            # A new tensor, because `self.used[at].scatter_` would change a copy.
            self.used[at] = torch.zeros_like(self.used[: len(ids)]).scatter_(1, ids, True)

    def copy_prompts(self, sources: Tensor, targets: Tensor, tokens: int) -> None:
        """Copies the first tokens' keys and values of sequences (N,) to sequences (N,)."""
        for tensor in self._cache_tensors():
            source, target = sources.to(tensor.device), targets.to(tensor.device)
            tensor[target, ..., :tokens, :] = tensor[source, ..., :tokens, :]

    def seed(self, at: Sequence[int], seeds: Sequence[int]) -> None:
        """Sets what the replies of some sequences are drawn with, from their requests' seeds."""
        device = self.draws.device
        draws = torch.from_numpy(draws_of(seeds, self.draws.shape[1]))
        self.draws[to_device(torch.tensor(at), device)] = to_device(draws, device)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies sequences onto others, none of which is a source, and frees the sources."""
        index = torch.tensor([sources, targets])
        for buffer in self.all_buffers():
            source, target = to_device(index, buffer.device)
            buffer[target] = buffer[source]
        self.live.index_fill_(0, to_device(index[0], self.live.device), False)

    def copy_from(self, smaller: SequenceBuffers) -> None:
        """Takes over the state of buffers with less capacity and as many sequences."""
        for new, old in zip(self._cache_tensors(), smaller._cache_tensors(), strict=True):
            new[..., : smaller.capacity, :].copy_(old)
        for new, old in zip(self.reply_state(), smaller.reply_state(), strict=True):
            new.copy_(old)


def allocate_buffers(
    model: ImageDoctorModel, sequences: int, capacity: int, limits: GenerationLimits
) -> SequenceBuffers:
    """Allocates buffers without a live sequence.

    Args:
        model: gives sizes, dtype, and each layer's device.
        sequences: how many sequences to allocate for.
        capacity: tokens of the longest prompt and its reply; rounded up to whole blocks.
        limits: give the reply's length and what is recorded of it.
    """
    text = model.config.text
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    kv_heads, size = int(text["num_key_value_heads"]), hidden // heads
    weight = model.lm_head.weight
    capacity = -(-capacity // CAPACITY_BLOCK) * CAPACITY_BLOCK
    most = limits.max_new_tokens
    vocabulary = len(weight) if limits.penalty != 1.0 else 0
    watched = sum(map(len, limits.watched_groups))
    vectors, in_fp8 = (2, kv_heads, capacity), is_in_fp8(model)

    # Not `empty`: masked attention multiplies unused places by 0, and 0 * NaN is NaN.
    def zeros(*shape: int, dtype: torch.dtype = torch.long, device: Any = weight.device) -> Tensor:
        return torch.zeros(sequences, *shape, dtype=dtype, device=device)

    return SequenceBuffers(
        # The tokens of a head are contiguous, because attention reads them head by head.
        kv_cache=[
            LayerCache(
                zeros(*vectors, size, dtype=torch.int8 if in_fp8 else weight.dtype, device=device),
                zeros(*vectors, 1, dtype=torch.float32, device=device) if in_fp8 else None,
            )
            for device in _layer_devices(model)
        ],
        hidden=zeros(hidden, dtype=weight.dtype),
        position=zeros(),
        length=zeros(),
        live=zeros(dtype=torch.bool),
        count=zeros(),
        tokens=zeros(most),
        map_states=zeros(2, hidden, dtype=weight.dtype),
        has_map=zeros(2, dtype=torch.bool),
        probs=zeros(most, watched, dtype=torch.float32),
        used=zeros(vocabulary, dtype=torch.bool),
        draws=zeros(most if limits.temperature else 0, 2, dtype=torch.float32),
        # Steps write the places of chosen tokens only, and those are the same in every reply.
        log_probs=zeros(most if limits.log_probs else 0, dtype=torch.float32).fill_(math.nan),
    )


def _layer_devices(model: ImageDoctorModel) -> list[torch.device]:
    layers = cast(Sequence[Any], model.model.layers)
    return [layer.input_layernorm.weight.device for layer in layers]


def max_sequences(model: ImageDoctorModel) -> int:
    """Returns the most sequences that are worth decoding together on the model's device."""
    return GPU_SEQUENCES if model.lm_head.weight.is_cuda else CPU_SEQUENCES


def sequences_that_fit(
    model: ImageDoctorModel,
    capacity: int,
    limits: GenerationLimits,
    replaced: SequenceBuffers | None = None,
) -> int:
    """Returns how many sequences half of a GPU's free memory holds, at least 1.

    Half, because prefill and heatmaps need memory too. On a CPU: `CPU_SEQUENCES`.

    Args:
        model: see `allocate_buffers`.
        capacity: tokens of a prompt and its reply.
        limits: see `allocate_buffers`.
        replaced: buffers that will be freed first.
    """
    device = model.lm_head.weight.device
    if device.type != "cuda":
        return CPU_SEQUENCES
    single = allocate_buffers(model, 1, capacity, limits)
    free = (free_bytes(str(device)) or 0) + (replaced.nbytes if replaced else 0)
    return max(1, free // 2 // single.nbytes)
