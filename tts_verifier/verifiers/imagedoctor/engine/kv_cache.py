"""Where replies are written: a fixed number of rows with room for keys, values and tokens.

Every buffer keeps its place in memory, so that a captured step finds it again. A row is
free, or holds one request until its reply has ended; `decode` fills and empties rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.generation import GenerationLimits
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device

BLOCK = 128
MOST_ROWS = 32
"""Rows unless memory is short: more gain little, and wait for the longest reply."""
PROMPT = 1024
"""Tokens of a prompt that room is foreseen for when rows are counted."""


@dataclass(slots=True, eq=False)
class Slots:
    """All state of S rows; C: the longest past, M: tokens a reply may have.

    `past`: a layer each, (S, 2, kv heads, C, size). `hidden`: (S, H), what predicts the next
    token. `position`: (S,), where it stands for M-RoPE. `length`: (S,), tokens in the past.
    `live`: (S,), is being written. `count`: (S,), tokens written into `tokens` (S, M).
    `states`, `seen`: (S, 2, H), (S, 2), of the two heatmap tokens. `odds`: (S, M, W), the
    watched tokens' probabilities. `used`: (S, vocabulary), tokens that the penalty lowers.
    """

    past: list[Tensor]
    hidden: Tensor
    position: Tensor
    length: Tensor
    live: Tensor
    count: Tensor
    tokens: Tensor
    states: Tensor
    seen: Tensor
    odds: Tensor
    used: Tensor

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.length)

    @property
    def room(self) -> int:
        """How long a past may be."""
        return self.past[0].shape[-2]

    def state(self) -> tuple[Tensor, ...]:
        """Returns all buffers, rows first."""
        rest = (self.hidden, self.position, self.length, self.live, self.count, self.tokens)
        return (*self.past, *rest, self.states, self.seen, self.odds, self.used)

    def move(self, source: list[int], target: list[int]) -> None:
        """Copies rows onto others, none of which is a source."""
        index = torch.tensor([source, target])
        for buffer in self.state():
            there = to_device(index, buffer.device)
            buffer[there[1]] = buffer[there[0]]


def make_slots(model: ImageDoctorModel, rows: int, room: int, limits: GenerationLimits) -> Slots:
    """Makes free rows; `room`: for a prompt and its reply, rounded up to whole blocks."""
    text = model.config.text
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    kv, size = int(text["num_key_value_heads"]), hidden // heads
    weight = model.lm_head.weight
    device, dtype = weight.device, weight.dtype
    room = -(-room // BLOCK) * BLOCK
    most = limits.max_new_tokens
    vocabulary = len(weight) if limits.penalty != 1.0 else 0
    return Slots(
        past=[
            torch.zeros(rows, 2, kv, room, size, dtype=dtype, device=place)
            for place in _devices(model)
        ],
        hidden=torch.zeros(rows, hidden, dtype=dtype, device=device),
        position=torch.zeros(rows, dtype=torch.long, device=device),
        length=torch.zeros(rows, dtype=torch.long, device=device),
        live=torch.zeros(rows, dtype=torch.bool, device=device),
        count=torch.zeros(rows, dtype=torch.long, device=device),
        tokens=torch.zeros(rows, most, dtype=torch.long, device=device),
        states=torch.zeros(rows, 2, hidden, dtype=dtype, device=device),
        seen=torch.zeros(rows, 2, dtype=torch.bool, device=device),
        odds=torch.zeros(rows, most, sum(map(len, limits.watched_groups)), device=device),
        used=torch.zeros(rows, vocabulary, dtype=torch.bool, device=device),
    )


def _devices(model: ImageDoctorModel) -> list[torch.device]:
    """Returns where each layer is."""
    layers = cast(Sequence[Any], model.model.layers)
    return [layer.input_layernorm.weight.device for layer in layers]


def rows_that_fit(model: ImageDoctorModel, limits: GenerationLimits) -> int:
    """Returns how many rows half of the free memory holds, at least 1."""
    device = model.lm_head.weight.device
    if device.type != "cuda":
        return MOST_ROWS
    free, _ = torch.cuda.mem_get_info(device)
    slots = make_slots(model, 1, PROMPT + limits.max_new_tokens, limits)
    row = sum(t.nbytes for t in slots.state())
    return max(1, min(MOST_ROWS, free // 2 // row))
