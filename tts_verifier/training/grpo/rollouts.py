"""Draws groups of replies with the engine, from its own copy of the weights.

The copy is in bfloat16 on a GPU and is updated in place, so the engine keeps its captured steps,
and its kernels run beside float32 weights that are trained. Both maps of a reply are decoded from
the states of its own rollout, as the official trainer has it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.identity import seed_for
from tts_verifier.training.grpo.prompts import PURPOSE, RatedPrompt
from tts_verifier.training.grpo.settings import GrpoSettings
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint
from tts_verifier.verifiers.imagedoctor.checkpoint.replace import copy_weights
from tts_verifier.verifiers.imagedoctor.engine import Engine, MapDecoder
from tts_verifier.verifiers.imagedoctor.engine.engine import EXPECTED_PROMPT, REPLY_BLOCK
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MAP_BATCH, MAPS
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import GPU_SEQUENCES, allocate_buffers
from tts_verifier.verifiers.imagedoctor.requests import (
    GeneratedReply,
    GenerationLimits,
    GenerationRequest,
)


@dataclass(frozen=True, slots=True, eq=False)
class DrawnReply:
    """One reply of a group."""

    text: str
    """Without special tokens, as the official trainer reads it."""
    ids: list[int]
    """The drawn tokens, the end token included; at least one."""
    log_probs: NDArray[np.float32]
    """(tokens,), of each of them as the rollout saw it."""
    maps: Mapping[str, Tensor]
    """`misalignment` and `artifact`, float32 (H, W) in [0, 1] on the device, where the reply has
    their tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The replies to one prompt."""

    prompt: RatedPrompt
    """What they reply to."""
    visual: Tensor
    """(merged tokens, H), the picture's features, on the device."""
    replies: Sequence[DrawnReply]
    """As many as `group`."""


class Rollouts:
    """Draws replies. Not safe to share between threads.

    Args:
        checkpoint: whose model is copied.
        settings: how replies are drawn.
        seed: decides them, with the places of the prompts.
        device: of the copy.
        reserved: bytes of the device that training will take.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: GrpoSettings,
        seed: int,
        device: torch.device,
        reserved: int = 0,
    ) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = copy.deepcopy(checkpoint.model).to(device, dtype).requires_grad_(False).eval()
        self._tokenizer, self._grid = checkpoint.tokenizer, checkpoint.processor.grid
        self._merge = checkpoint.processor.merge_size
        self._settings, self._seed = settings, seed
        self.limits = rollout_limits(checkpoint.limits, settings)
        sequences = None
        if device.type == "cuda":
            capacity = EXPECTED_PROMPT + min(REPLY_BLOCK, self.limits.max_new_tokens)
            single = allocate_buffers(self.model, 1, capacity, self.limits).nbytes
            free = torch.cuda.mem_get_info(device)[0] - reserved
            sequences = sequences_beside(free, single, settings.prompts * settings.group)
        self._engine = Engine(self.model, self.limits, sequences=sequences)
        self._decoder = MapDecoder(self.model)

    def update(self, state: Mapping[str, Tensor]) -> None:
        """Copies trained weights into the engine's, in place."""
        copy_weights(self.model, state, partial=True)

    def draw(self, prompts: Sequence[RatedPrompt]) -> list[Group]:
        """Draws a group of replies to each prompt."""
        size = self._settings.group
        # Falling lengths spare the KV cache its growth.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
        requests = [self._request(prompts[i], k) for i in order for k in range(size)]
        drawn = dict(self._engine.replies(requests, expected=len(requests)))
        replies = [drawn[number] for number in range(len(requests))]
        maps = self._decode_maps(replies)
        read = [self._read(reply, maps[number]) for number, reply in enumerate(replies)]
        groups: list[tuple[int, Group]] = []
        for place, i in enumerate(order):
            first = place * size
            # Cloned, because a tensor of inference mode cannot take part in training.
            visual = replies[first].visual.clone()
            groups.append((i, Group(prompts[i], visual, read[first : first + size])))
        return [group for _, group in sorted(groups, key=lambda pair: pair[0])]

    def _request(self, prompt: RatedPrompt, number: int) -> GenerationRequest:
        seed = seed_for(self._seed, str(number), prompt.place, PURPOSE)
        return GenerationRequest(prompt.ids, prompt.patches, self._grid, seed)

    def _decode_maps(self, replies: Sequence[GeneratedReply]) -> list[dict[str, Tensor]]:
        """Decodes the maps that replies ask for; the host does not wait for them."""
        rows, columns = (side // self._merge for side in self._grid)
        wanted = [(i, k) for i, r in enumerate(replies) for k in range(len(MAPS)) if r.has_map[k]]
        maps: list[dict[str, Tensor]] = [{} for _ in replies]
        self._decoder.forget_moved()
        for first in range(0, len(wanted), MAP_BATCH):
            part = wanted[first : first + MAP_BATCH]
            states = torch.stack([replies[i].map_states[k] for i, k in part])
            visual = torch.stack([replies[i].visual for i, _ in part])
            decoded = self._decoder(states, visual, (rows, columns))
            for (i, k), grid in zip(part, decoded, strict=True):
                maps[i][MAPS[k]] = grid
        return maps

    def _read(self, reply: GeneratedReply, maps: Mapping[str, Tensor]) -> DrawnReply:
        if reply.log_probs is None:
            raise TypeError("a rollout records log-probabilities")
        ids = reply.ids if reply.end is None else [*reply.ids, reply.end]
        return DrawnReply(self._tokenizer.decode(reply.ids), ids, reply.log_probs, maps)


def sequences_beside(free: int, single: int, wanted: int) -> int:
    """Returns how many replies to draw at a time on a GPU that trains as well.

    The engine would take half of what is free before the first update, and keep it.

    Args:
        free: bytes, without what training will take for weights, gradients and moments.
        single: bytes of one reply's buffers.
        wanted: replies of a step.
    """
    # Activations and prefill need the other three quarters.
    return max(1, min(wanted, GPU_SEQUENCES, free // 4 // single))


def rollout_limits(limits: GenerationLimits, settings: GrpoSettings) -> GenerationLimits:
    """Returns the limits of replies that are drawn as the policy gives them, without a penalty."""
    most = settings.max_new_tokens or limits.max_new_tokens
    drawn = replace(limits, max_new_tokens=most, penalty=1.0, watched_groups=(), forced_steps=())
    return replace(drawn, sampling=settings.sampling, log_probs=True)
