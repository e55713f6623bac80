"""Many images and prompts to replies, greedily: rows are refilled as their replies end.

Waiting requests are read some at a time into free rows, then all rows write one token a
step. The host looks only every few steps at which rows have ended; what such a row would
have written after its end is never noted. Of each row only the states that matter are kept:
those, after the final norm, that predict the first token of each heatmap kind.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tts_verifier.verifiers.imagedoctor.engine.decode_step import ANY, Step
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import Slots, make_slots
from tts_verifier.verifiers.imagedoctor.engine.layers import (
    Layer,
    Turn,
    layers_of,
    run,
    shape_of,
    turns,
)
from tts_verifier.verifiers.imagedoctor.generation import (
    GeneratedReply,
    GenerationLimits,
    GenerationRequest,
)
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.vision import Block, Grid, blocks_of
from tts_verifier.verifiers.imagedoctor.ops.pointwise import rotate_heads
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device

STRIDE = 8
"""Steps between two looks at which rows have ended."""
CHUNK = 16
"""Prompts read at a time, at most: enough to fill a GPU, and a bound on memory."""
REFILL = 4
"""Free rows are refilled when they are at least a REFILL-th of all, or nothing is written."""


@dataclass(slots=True, eq=False)
class _Row:
    """What a row is busy with; `longest`: at most the length of its past."""

    number: int
    request: GenerationRequest
    visual: Tensor
    longest: int


class _Waiting:
    """Requests that are still to be read; taken from their source when they are looked at.

    So pictures can be prepared while the GPU works on those before.
    """

    def __init__(self, source: Iterator[tuple[int, GenerationRequest]]) -> None:
        self._source, self._taken = source, deque[tuple[int, GenerationRequest]]()

    def first(self, count: int) -> list[tuple[int, GenerationRequest]]:
        """Returns the first ones, at most so many."""
        self._taken.extend(islice(self._source, max(count - len(self._taken), 0)))
        return list(islice(self._taken, count))

    def more(self) -> bool:
        """Says whether there is any."""
        return bool(self.first(1))

    def drop(self, count: int) -> None:
        """Takes the first ones out."""
        for _ in range(count):
            self._taken.popleft()

    def put_back(self, requests: Sequence[tuple[int, GenerationRequest]]) -> None:
        """Puts requests before all others."""
        self._taken.extendleft(reversed(requests))


class Engine:
    """Keeps the buffers and captured steps of a model between calls.

    Args:
        model: on its devices, for inference; its weights may change between calls.
        limits: of every reply.
        slots: rows, replies written at a time; halved when memory runs out.
    """

    def __init__(self, model: ImageDoctorModel, limits: GenerationLimits, *, slots: int) -> None:
        self.model, self.limits, self.rows = model, limits, slots
        self._step: Step | None = None
        self._busy: dict[int, _Row] = {}
        self._weights: tuple[int, ...] = ()
        self._layers: list[Layer] = []
        self._blocks: list[Block] = []
        self._warned = False

    @property
    def step(self) -> Step | None:
        """What writes one token a row, None until prompts were read; for timing it."""
        return self._step

    def forget(self) -> None:
        """Gives back buffers, captured steps and joined weights, all made anew when needed."""
        self._step, self._weights, self._layers, self._blocks = None, (), [], []

    @torch.inference_mode()
    def replies(
        self, requests: Iterable[GenerationRequest]
    ) -> Iterator[tuple[int, GeneratedReply]]:
        """Yields (place in `requests`, reply) as replies end; each equals what it would be alone.

        Requests are taken as rows get free; longer prompts first spare a larger buffer later.
        """
        waiting = _Waiting(enumerate(requests))
        self._busy = {}
        self._join()
        while self._busy or waiting.more():
            full, done = False, []
            try:
                self._refill(waiting)
                self._advance(idle=not waiting.more())
                done = self._ended()
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
                full = True
            if full:  # here, as the error held on to what had been computed
                waiting.put_back([(row.number, row.request) for row in self._busy.values()])
                self._shrink()
            yield from done

    def _shrink(self) -> None:
        """Gives all memory back and goes on with half the rows."""
        self._step, self._busy = None, {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._warned:
            warnings.warn(
                f"Memory ran out with batch_size {self.rows}; going on with half as many, and "
                "half again where needed. Give a smaller batch_size to avoid the wait.",
                stacklevel=3,
            )
        self._warned = True
        self.rows //= 2

    def _join(self) -> None:
        """Joins weights anew if any has moved; captured steps then no longer hold."""
        self._layers = layers_of(self.model)
        self._blocks = blocks_of(self.model.visual, fuse=True)
        weights = tuple(p.data_ptr() for p in self.model.parameters())
        if weights != self._weights:
            self._weights, self._step = weights, None

    # -- reading prompts -----------------------------------------------------------------

    def _refill(self, waiting: _Waiting) -> None:
        free = [row for row in range(self.rows) if row not in self._busy]
        if self._busy and (self.limits.forced_steps or len(free) * REFILL < self.rows):
            return
        while free and (part := waiting.first(min(CHUNK, len(free)))):
            self._read(free[: len(part)], part)
            waiting.drop(len(part))
            free = free[len(part) :]

    def _read(self, rows: list[int], part: Sequence[tuple[int, GenerationRequest]]) -> None:
        """Reads prompts into free rows; on an error the rows stay free."""
        requests = [request for _, request in part]
        longest = max(len(request.ids) for request in requests)
        slots = self._slots(longest + self.limits.max_new_tokens)
        device = slots.length.device
        ids, real = _padded([request.ids for request in requests], device)
        grids = [request.grid for request in requests]
        pixels = self._sent([request.patches for request in requests], device)
        visual = self.model.visual_features(pixels, grids, self._blocks)
        at = to_device(torch.tensor(rows), device)
        self._fill(slots, at, (ids, real), visual, grids)
        merge = int(self.model.config.vision["spatial_merge_size"])
        features = torch.split(visual, [h * w // merge**2 for h, w in grids])
        for row, (number, request), cells in zip(rows, part, features, strict=True):
            self._busy[row] = _Row(number, request, cells, len(request.ids))

    def _sent(self, patches: Sequence[NDArray[np.float32]], device: torch.device) -> Tensor:
        """Brings patches to the device in the model's precision, without waiting for it.

        From pinned memory they travel while the GPU still works on the prompts before.
        """
        rows = [len(part) for part in patches]
        shape, dtype = (sum(rows), patches[0].shape[1]), self.model.lm_head.weight.dtype
        pixels = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
        for place, part in zip(pixels.split(rows), patches, strict=True):
            place.copy_(torch.from_numpy(part))
        return pixels.to(device, non_blocking=True)

    def _fill(
        self,
        slots: Slots,
        at: Tensor,
        prompts: tuple[Tensor, Tensor],
        visual: Tensor,
        grids: Sequence[Grid],
    ) -> None:
        """Runs the language model over right-padded prompts, whose padding nothing sees."""
        ids, real = prompts
        positions, shift = self.model.positions(ids, grids, real)
        shape = shape_of(self.model)
        width, count = shape.heads * shape.size, ids.shape[1]

        def attend(layer: int, qkv: Tensor, turn: Turn) -> Tensor:
            heads = qkv.flatten(0, 1).unflatten(-1, (-1, shape.size))
            qkv = rotate_heads(heads, *turn, shape.turned).view(qkv.shape)
            q, kv = qkv[..., :width], qkv[..., width:].unflatten(-1, (2, -1, shape.size))
            kv = kv.permute(0, 2, 3, 1, 4)
            past = slots.past[layer]
            past[at.to(past.device), ..., :count, :] = kv
            q = q.unflatten(-1, (-1, shape.size)).transpose(1, 2)
            k, v = kv.unbind(1)
            out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return out.transpose(1, 2).flatten(2)

        turn = turns(self.model, positions, shape)
        x = run(self._layers, self.model.embed(ids, visual), turn, shape, attend=attend)
        length = real.sum(1)
        last = x.to(ids.device)[torch.arange(len(ids), device=ids.device), length - 1]
        slots.hidden[at] = last
        slots.position[at] = length + shift[:, 0]
        slots.length[at] = length
        slots.live[at] = True
        slots.count[at] = 0
        slots.seen[at] = False
        slots.states[at] = 0
        if slots.used.shape[1]:
            # Padding repeats each prompt's first token, so that it marks nothing else.
            slots.used[at] = torch.zeros_like(slots.used[: len(ids)]).scatter_(1, ids, True)

    def _slots(self, room: int) -> Slots:
        """Returns buffers with at least this room, with what busy rows hold."""
        if self._step is not None and self._step.slots.room >= room:
            return self._step.slots
        made = make_slots(self.model, self.rows, room, self.limits)
        if self._step is not None and self._busy:
            for new, old in zip(made.state(), self._step.slots.state(), strict=True):
                new[..., : old.shape[-2], :].copy_(old) if new.dim() == 5 else new.copy_(old)
        self._step = Step(self.model, self._layers, made, self.limits)
        return made

    # -- writing replies -----------------------------------------------------------------

    def _advance(self, *, idle: bool) -> None:
        """Writes up to STRIDE tokens in every busy row, or all turns that are known."""
        step = self._step
        if step is None:
            return
        if idle:
            self._gather(step.slots)
        rows = self._span()
        for turn in self.limits.forced_steps or [ANY] * min(STRIDE, self.limits.max_new_tokens):
            step(rows, max(row.longest for row in self._busy.values()), turn)
            for row in self._busy.values():
                row.longest = min(row.longest + 1 + len(turn.forced), step.slots.room - 1)

    def _span(self) -> int:
        """Returns how many rows to step: all, or a half, quarter… that holds the busy ones."""
        rows = self.rows
        while rows > 1 and max(self._busy) < -(-rows // 2):
            rows = -(-rows // 2)
        return rows

    def _gather(self, slots: Slots) -> None:
        """Moves busy rows to the front if half the rows that are stepped would do."""
        half = -(-self._span() // 2)
        if len(self._busy) > half:
            return
        behind = [row for row in self._busy if row >= half]
        free = [row for row in range(half) if row not in self._busy][: len(behind)]
        if behind:
            slots.move(behind, free)
        for source, target in zip(behind, free, strict=True):
            slots.live[source] = False
            self._busy[target] = self._busy.pop(source)

    def _ended(self) -> list[tuple[int, GeneratedReply]]:
        """Frees the rows whose replies have ended, and returns these."""
        if self._step is None:
            return []
        slots = self._step.slots
        live, counts = torch.stack([slots.live.long(), slots.count]).tolist()
        ready = [row for row in self._busy if not live[row]]
        if not ready:
            return []
        at = to_device(torch.tensor(ready), slots.length.device)
        most = max(counts[row] for row in ready)
        tokens, seen = slots.tokens[at, :most].tolist(), slots.seen[at].tolist()
        odds = slots.odds[at, :most].cpu().numpy()
        found = []
        for i, (row, state) in enumerate(zip(ready, slots.states[at], strict=True)):
            busy = self._busy.pop(row)
            reply, ended = _until(tokens[i][: counts[row]], self.limits.eos)
            kinds = (bool(seen[i][0]), bool(seen[i][1]))
            chances = odds[i, : len(reply)]
            found.append(
                (busy.number, GeneratedReply(reply, ended, state, kinds, busy.visual, chances))
            )
        return found


def generate(
    model: ImageDoctorModel, requests: Sequence[GenerationRequest], limits: GenerationLimits
) -> list[GeneratedReply]:
    """Writes the replies of one batch, in its order."""
    found = dict(Engine(model, limits, slots=max(len(requests), 1)).replies(requests))
    return [found[i] for i in range(len(requests))]


def _padded(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids (B, T), padded right by each row's first, and which are real, bool."""
    longest = max(map(len, ids))
    batch = torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in ids])
    lengths = torch.tensor([len(row) for row in ids])
    real = torch.arange(longest) < lengths[:, None]
    return to_device(batch, device), to_device(real, device)


def _until(tokens: list[int], eos: tuple[int, ...]) -> tuple[list[int], bool]:
    """Returns the tokens before the end token, and whether there was one."""
    if tokens and tokens[-1] in eos:
        return tokens[:-1], True
    return tokens, False
