"""One token for every row: fixed shapes, nothing asked of the host, so that it is capturable.

On a GPU a step is recorded once for each number of rows and length of past, both of few
values, and replayed as one CUDA graph; all graphs share one memory pool. On a CPU it is
called. A row that has ended is computed on and changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tts_verifier.verifiers.imagedoctor.layers import Layer, Shape, run, shape_of, turns
from tts_verifier.verifiers.imagedoctor.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.slots import Limits, Slots

BUCKET = {"cpu": 64}
GPU_BUCKET = 128
"""Lengths of past are rounded up to these: a graph each on a GPU, less to attend to on a CPU."""


class Step:
    """Writes the next token of the first rows of `slots`.

    Args:
        model: gives embedding, final norm and output matrix.
        layers: from `layers.layers_of`.
        slots: what it works on.
        limits: end tokens, penalty and digits.
    """

    def __init__(
        self, model: ImageDoctorModel, layers: list[Layer], slots: Slots, limits: Limits
    ) -> None:
        self.model, self.layers, self.slots, self.limits = model, layers, slots, limits
        self.shape: Shape = shape_of(model)
        device = slots.length.device
        config = model.config
        kinds = [config.misalignment_token_id, config.artifact_token_id]
        self._kinds = torch.tensor(kinds, device=device)
        self._eos = torch.tensor(limits.eos, device=device)
        self._digits = torch.tensor(limits.digits, dtype=torch.long, device=device)
        places = {past.device for past in slots.past}
        self._captures = device.type == "cuda" and len(places) == 1
        self._bucket = BUCKET.get(device.type, GPU_BUCKET)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None

    def __call__(self, rows: int, longest: int) -> None:
        """Steps `rows` rows, none of whose pasts is longer than `longest` before."""
        bucket = min(-(-(longest + 1) // self._bucket) * self._bucket, self.slots.room)
        if not self._captures:
            self._step(rows, bucket)
            return
        key = (rows, bucket)
        if key not in self._graphs:
            self._graphs[key] = self._capture(rows, bucket)
        self._graphs[key].replay()

    def _capture(self, rows: int, bucket: int) -> torch.cuda.CUDAGraph:
        """Records a step; what the warm-up before it writes is put back."""
        kept = [t.clone() for t in self.slots.state()[len(self.slots.past) :]]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(rows, bucket)
        torch.cuda.current_stream().wait_stream(side)
        for buffer, before in zip(self.slots.state()[len(self.slots.past) :], kept, strict=True):
            buffer.copy_(before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._step(rows, bucket)
        return graph

    def _step(self, rows: int, bucket: int) -> None:
        token = self._choose(rows)
        x = self.model.model.embed_tokens(token[:, None])
        position = self.slots.position[:rows, None].expand(3, -1, -1)
        past = _Past(self.slots, rows, bucket, self.shape, x.dtype)
        turn = turns(self.model, position, self.shape)
        x = run(self.layers, x.clone(), turn, self.shape, attend=past.attend)
        x = x.to(self.slots.hidden.device)
        self.slots.hidden[:rows] = self.model.model.norm(x)[:, 0]
        live = self.slots.live[:rows].long()
        self.slots.position[:rows] += live
        self.slots.length[:rows] += live
        ended = (token[:, None] == self._eos).any(1)
        self.slots.count[:rows] += live
        more = self.slots.count[:rows] < self.limits.max_new_tokens
        self.slots.live[:rows] &= ~ended & more

    def _choose(self, rows: int) -> Tensor:
        """Picks the best token of each row, and notes all that is kept of it."""
        s = self.slots
        hidden, live = s.hidden[:rows], s.live[:rows]
        logits = self.model.lm_head(hidden).float()
        token = self._lowered(logits, rows).argmax(-1)
        at = s.count[:rows].clamp(max=self.limits.max_new_tokens - 1)[:, None]
        tokens = s.tokens[:rows]
        tokens.scatter_(1, at, torch.where(live[:, None], token[:, None], tokens.gather(1, at)))
        hit = (token[:, None] == self._kinds) & ~s.seen[:rows] & live[:, None]
        s.states[:rows] = torch.where(hit[..., None], hidden[:, None], s.states[:rows])
        s.seen[:rows] |= hit
        if self.limits.digits:
            odds = (logits[:, self._digits] - logits.logsumexp(-1, keepdim=True)).exp()
            place = at[..., None].expand(-1, -1, odds.shape[-1])
            kept = s.odds[:rows].gather(1, place)
            new = torch.where(live[:, None, None], odds[:, None], kept)
            s.odds[:rows].scatter_(1, place, new)
        return token

    def _lowered(self, logits: Tensor, rows: int) -> Tensor:
        if self.limits.penalty == 1.0:
            return logits
        factor = self.limits.penalty
        lowered = torch.where(logits < 0, logits * factor, logits / factor)
        used = self.slots.used[:rows]
        logits = torch.where(used, lowered, logits)
        used.scatter_(1, logits.argmax(-1, keepdim=True), True)
        return logits


class _Past:
    """Attention of one new token a row over the first `bucket` places of the past."""

    def __init__(
        self, slots: Slots, rows: int, bucket: int, shape: Shape, dtype: torch.dtype
    ) -> None:
        self.slots, self.rows, self.bucket, self.shape = slots, rows, bucket, shape
        length = slots.length[:rows].clamp(max=slots.room - 1)
        first = torch.arange(rows, device=length.device) * slots.room
        self._place = first + length
        ahead = torch.arange(bucket, device=length.device) > length[:, None]
        blank = torch.zeros(rows, bucket, dtype=dtype, device=length.device)
        self._bias = blank.masked_fill_(ahead, -torch.inf)[:, None, None]

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """(rows, 1, joined) -> (rows, 1, heads * size); query heads of a group go together."""
        shape, past = self.shape, self.slots.past[layer]
        width = shape.heads * shape.size
        flat = past.view(-1, 2 * shape.kv_heads * shape.size)
        flat.index_copy_(0, self._place.to(past.device), qkv[:, 0, width:])
        keys, values = past[: self.rows, : self.bucket].transpose(1, 3).unbind(2)
        query = qkv[:, 0, :width].unflatten(-1, (shape.kv_heads, -1, shape.size))
        out = scaled_dot_product_attention(
            query, keys, values, attn_mask=self._bias.to(past.device)
        )
        return out.reshape(self.rows, 1, width)
