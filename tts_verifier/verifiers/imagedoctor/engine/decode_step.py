"""One turn for every row: fixed shapes, nothing asked of the host, so that it is capturable.

A turn chooses a token and reads it, with those that are known to follow it, if any. On a GPU
it is recorded once for each kind of turn, number of rows and length of past, all of few values,
and replayed as one CUDA graph; all graphs share one memory pool. On a CPU it is called. A row
that has ended is computed on and changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.engine.attention import Past
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import Slots
from tts_verifier.verifiers.imagedoctor.engine.layers import Layer, Shape, run, shape_of, turns
from tts_verifier.verifiers.imagedoctor.generation import ForcedStep, GenerationLimits
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

CPU_BUCKET = 16
GPU_BUCKET = 128
"""Lengths of past are rounded up to these: a graph each on a GPU, less to attend to on a CPU."""

ANY = ForcedStep()
"""Chooses among all tokens; nothing is known of what follows."""


class Step:
    """Writes the next token of the first rows of `slots`.

    Args:
        model: gives embedding, final norm and output matrix.
        layers: from `layers.layers_of`.
        slots: what it works on.
        limits: end tokens, penalty and watched tokens.
    """

    def __init__(
        self, model: ImageDoctorModel, layers: list[Layer], slots: Slots, limits: GenerationLimits
    ) -> None:
        self.model, self.layers, self.slots, self.limits = model, layers, slots, limits
        self.shape: Shape = shape_of(model)
        device = slots.length.device
        config = model.config
        self._kinds = (config.misalignment_token_id, config.artifact_token_id)
        self._wanted = torch.tensor(self._kinds, device=device)
        self._eos = torch.tensor(limits.eos, device=device)
        self._watched = [torch.tensor(group, device=device) for group in limits.watched_groups]
        # Made once: a captured step may not bring tensors from the host.
        self._known = {
            turn: [torch.tensor(ids, dtype=torch.long, device=device) for ids in parts]
            for turn in {ANY, *limits.forced_steps}
            for parts in [(turn.choices, turn.forced)]
        }
        places = {past.device for past in slots.past}
        self._captures = device.type == "cuda" and len(places) == 1
        self._bucket = CPU_BUCKET if device.type == "cpu" else GPU_BUCKET
        self._graphs: dict[tuple[int, int, ForcedStep], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        # One for all graphs, as they share memory; torch's own is of the first device used.
        self._side = torch.cuda.Stream(device) if self._captures else None

    def __call__(self, rows: int, longest: int, turn: ForcedStep = ANY) -> None:
        """Takes a turn in `rows` rows, none of whose pasts is longer than `longest` before."""
        after = longest + 1 + len(turn.forced)
        bucket = min(-(-after // self._bucket) * self._bucket, self.slots.room)
        if not self._captures:
            self._step(rows, bucket, turn)
            return
        key = (rows, bucket, turn)
        if key not in self._graphs:
            self._graphs[key] = self._capture(*key)
        self._graphs[key].replay()

    def _capture(self, rows: int, bucket: int, turn: ForcedStep) -> torch.cuda.CUDAGraph:
        """Records a step; what the warm-up before it writes is put back."""
        kept = [t.clone() for t in self.slots.state()[len(self.slots.past) :]]
        side = self._side or torch.cuda.current_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(rows, bucket, turn)
        torch.cuda.current_stream().wait_stream(side)
        for buffer, before in zip(self.slots.state()[len(self.slots.past) :], kept, strict=True):
            buffer.copy_(before)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads may use the device meanwhile
        with torch.cuda.graph(graph, self._pool, side, capture_error_mode=mode):
            self._step(rows, bucket, turn)
        return graph

    def _step(self, rows: int, bucket: int, turn: ForcedStep = ANY) -> None:
        s, then = self.slots, self._known[turn][1]
        chosen = self._choose(rows, turn)
        tokens = torch.cat([chosen[:, None], then.expand(rows, -1)], 1)
        x = self.model.model.embed_tokens(tokens)
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        position = (s.position[:rows, None] + ahead).expand(3, -1, -1)
        past = Past(s, rows, bucket, self.shape, x)
        x = run(
            self.layers, x.clone(), turns(self.model, position, self.shape), self.shape,
            attend=past.attend,
        )  # fmt: skip
        hidden = x.to(s.hidden.device)
        self._note(tokens, hidden, turn)
        s.hidden[:rows] = hidden[:, -1]
        live = s.live[:rows].long() * tokens.shape[1]
        s.position[:rows] += live
        s.length[:rows] += live
        s.count[:rows] += live
        ended = (chosen[:, None] == self._eos).any(1)
        more = s.count[:rows] < self.limits.max_new_tokens
        s.live[:rows] &= ~ended & more

    def _choose(self, rows: int, turn: ForcedStep) -> Tensor:
        """Picks the best token of each row, and notes all that is kept of it."""
        s = self.slots
        hidden, live = s.hidden[:rows], s.live[:rows]
        logits = self.model.lm_head(hidden).float()
        among = self._known[turn][0]
        lowered = self._lowered(logits, rows)
        token = lowered.argmax(-1)
        if turn.choices:
            token = among[lowered[:, among].argmax(-1)]
        if s.used.shape[1]:
            s.used[:rows].scatter_(1, token[:, None], True)
        hit = (token[:, None] == self._wanted) & ~s.seen[:rows] & live[:, None]
        s.states[:rows] = torch.where(hit[..., None], hidden[:, None], s.states[:rows])
        s.seen[:rows] |= hit
        if self._watched:
            odds = torch.cat([logits[:, group].softmax(-1) for group in self._watched], -1)
            at = s.count[:rows].clamp(max=self.limits.max_new_tokens - 1)[:, None, None]
            at = at.expand(-1, -1, odds.shape[-1])
            kept = torch.where(live[:, None, None], odds[:, None], s.odds[:rows].gather(1, at))
            s.odds[:rows].scatter_(1, at, kept)
        return token

    def _note(self, tokens: Tensor, hidden: Tensor, turn: ForcedStep) -> None:
        """Keeps the tokens (rows, T), and what predicted those heatmap tokens that were known."""
        s, rows = self.slots, len(tokens)
        live = s.live[:rows, None]
        at = s.count[:rows, None] + torch.arange(tokens.shape[1], device=tokens.device)
        at = at.clamp(max=self.limits.max_new_tokens - 1)
        written = s.tokens[:rows]
        written.scatter_(1, at, torch.where(live, tokens, written.gather(1, at)))
        for place, token in enumerate(turn.forced):
            if token in self._kinds:
                k = self._kinds.index(token)
                new = live & ~s.seen[:rows, k, None]
                s.states[:rows, k] = torch.where(new, hidden[:, place], s.states[:rows, k])
                s.seen[:rows, k] |= live[:, 0]
        if s.used.shape[1] and turn.forced:
            s.used[:rows].index_fill_(1, self._known[turn][1], True)

    def _lowered(self, logits: Tensor, rows: int) -> Tensor:
        if self.limits.penalty == 1.0:
            return logits
        factor = self.limits.penalty
        lowered = torch.where(logits < 0, logits * factor, logits / factor)
        used = self.slots.used[:rows]
        return torch.where(used, lowered, logits)
