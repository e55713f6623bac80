"""One decode step for all sequences, with fixed shapes and no host involvement.

A step chooses a token for each sequence and runs the model over it, together with the forced
tokens that follow it, if any. On a GPU the step is captured as a CUDA graph once for each kind of
step, span of sequences and bucket of cache lengths, all of which have few values, and replayed
after that. On a CPU, or with layers on several GPUs, it is called as it is.
"""

from __future__ import annotations

from threading import RLock
from typing import Final

import torch
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.engine.attention import DecodeAttention
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import SequenceBuffers
from tts_verifier.verifiers.imagedoctor.engine.layers import FusedModel, mrope, run_layers
from tts_verifier.verifiers.imagedoctor.engine.next_token import (
    ChooseToken,
    greedy,
    greedy_token,
    group_probs,
    penalise,
    sample,
    token_log_probs,
)
from tts_verifier.verifiers.imagedoctor.requests import ForcedStep, GenerationLimits, Sampling

CPU_BUCKET: Final = 16
GPU_BUCKET: Final = 128
"""Cache lengths are rounded up to these. Fewer lengths mean fewer captured graphs on a GPU;
a CPU captures none, and attends to less with a small bucket."""

CAPTURES: Final = RLock()
"""Held during a capture, while maps are decoded beside an engine, and while torch's cached memory
is freed. A capture begins by freeing the cached memory of all GPUs, which torch forbids while
another thread captures on one of them."""
FREE_STEP: Final = ForcedStep()
"""Chooses among the whole vocabulary, and forces no token after it."""


class DecodeStep:
    """Generates the next token of the leading sequences of some buffers.

    Not safe to share between threads.

    Args:
        fused: the model.
        buffers: read and updated in place; captured graphs hold their addresses.
        limits: end tokens, penalty, sampling, and what is recorded.
        choose: chooses each next token where none is drawn.
        capture: captures steps as CUDA graphs where that is possible.
    """

    def __init__(
        self,
        fused: FusedModel,
        buffers: SequenceBuffers,
        limits: GenerationLimits,
        *,
        choose: ChooseToken = greedy,
        capture: bool = True,
    ) -> None:
        self.fused, self.buffers, self.limits, self.choose = fused, buffers, limits, choose
        device, config = buffers.length.device, fused.model.config
        self._map_tokens = (config.misalignment_token_id, config.artifact_token_id)
        # All constants are on the device from the start: a graph cannot copy from the host.
        self._map_token_ids = torch.tensor(self._map_tokens, device=device)
        self._eos = torch.tensor(limits.eos, device=device)
        self._watched = [torch.tensor(group, device=device) for group in limits.watched_groups]
        self._step_ids = {
            step: tuple(
                torch.tensor(ids, dtype=torch.long, device=device)
                for ids in (step.choices, step.forced)
            )
            for step in {FREE_STEP, *limits.forced_steps}
        }
        one_device = len({cache.device for cache in buffers.kv_cache}) == 1
        self._captures = capture and device.type == "cuda" and one_device
        self._bucket = CPU_BUCKET if device.type == "cpu" else GPU_BUCKET
        self._graphs: dict[tuple[int, int, ForcedStep], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        # All graphs share one memory pool, hence one stream. torch's default capture stream
        # belongs to the first device that captured anything.
        self._stream = torch.cuda.Stream(device) if self._captures else None

    def __call__(self, sequences: int, longest: int, step: ForcedStep = FREE_STEP) -> None:
        """Runs one step.

        Args:
            sequences: how many leading sequences take part.
            longest: an upper bound of the tokens in a live sequence's KV cache before the step.
            step: what to choose among and what to append.
        """
        after = longest + 1 + len(step.forced)
        bucket = min(-(-after // self._bucket) * self._bucket, self.buffers.capacity)
        if not self._captures:
            self._run(sequences, bucket, step)
            return
        key = (sequences, bucket, step)
        if key not in self._graphs:
            with CAPTURES:
                self._graphs[key] = self._capture(*key)
        self._graphs[key].replay()

    def _capture(self, sequences: int, bucket: int, step: ForcedStep) -> torch.cuda.CUDAGraph:
        """Captures a CUDA graph; restores the state that its warm-up run has changed.

        The KV cache needs no restoring: the replay writes the same places again.
        """
        saved = [buffer.clone() for buffer in self.buffers.reply_state()]
        stream = self._stream or torch.cuda.current_stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Kernels are compiled and chosen in this run, which a capture would not allow.
        with torch.cuda.stream(stream):
            self._run(sequences, bucket, step)
        torch.cuda.current_stream().wait_stream(stream)
        for buffer, before in zip(self.buffers.reply_state(), saved, strict=True):
            buffer.copy_(before)
        graph = torch.cuda.CUDAGraph()
        # thread_local, because other threads may use the device during the capture.
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            self._run(sequences, bucket, step)
        return graph

    def _run(self, sequences: int, bucket: int, step: ForcedStep) -> None:
        """Chooses, embeds, runs the layers, and updates the sequences."""
        buffers, model = self.buffers, self.fused.model
        chosen = self._choose(sequences, step)
        _, forced = self._step_ids[step]
        tokens = torch.cat([chosen[:, None], forced.expand(sequences, -1)], 1)
        x = model.model.embed_tokens(tokens)
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        # Text has one position on all three axes of M-RoPE.
        position = (buffers.position[:sequences, None] + ahead).expand(3, -1, -1)
        attention = DecodeAttention(buffers, sequences, bucket, self.fused.shape, x)
        rope = mrope(self.fused, position)
        states = run_layers(self.fused, x, rope, attend=attention.attend)
        hidden = states.to(buffers.hidden.device)
        self._record_tokens(tokens)
        self._record_forced(hidden, step)
        buffers.hidden[:sequences] = hidden[:, -1]
        # 0 for an ended sequence. A branch would need the host to know which have ended.
        added = buffers.live[:sequences].long() * tokens.shape[1]
        buffers.position[:sequences] += added
        buffers.length[:sequences] += added
        buffers.count[:sequences] += added
        ended = (chosen[:, None] == self._eos).any(1)
        has_space = buffers.count[:sequences] < self.limits.max_new_tokens
        buffers.live[:sequences] &= ~ended & has_space

    def _choose(self, sequences: int, step: ForcedStep) -> Tensor:
        """Chooses each sequence's token (sequences,), and records what led to it."""
        buffers = self.buffers
        hidden, live = buffers.hidden[:sequences], buffers.live[:sequences]
        logits = self.fused.model.lm_head(hidden)
        token = self._choose_token(logits, step)
        # Ended sequences are marked too; `SequenceBuffers.start` clears their rows.
        if buffers.used.shape[1]:
            buffers.used[:sequences].scatter_(1, token[:, None], True)
        is_map_token = token[:, None] == self._map_token_ids
        is_first = is_map_token & ~buffers.has_map[:sequences] & live[:, None]
        states = buffers.map_states[:sequences]
        buffers.map_states[:sequences] = torch.where(is_first[..., None], hidden[:, None], states)
        buffers.has_map[:sequences] |= is_first
        # Not of the penalised logits: those of a digit depend on whether it occurred before.
        if self._watched:
            self._record(buffers.probs, group_probs(logits, self._watched))
        if self.limits.log_probs:
            log_probs = token_log_probs(logits, token, self.limits.temperature or 1.0)
            self._record(buffers.log_probs[..., None], log_probs[:, None])
        return token

    def _choose_token(self, logits: Tensor, step: ForcedStep) -> Tensor:
        """Chooses a token for each sequence from its logits (sequences, vocabulary), or draws it.

        Penalties and choices are computed in float32, as in transformers' `generate`.
        """
        used, penalty = self.buffers.used[: len(logits)], self.limits.penalty
        choices, _ = self._step_ids[step]
        if step.choices:
            logits = logits[:, choices]
            used = used[:, choices] if penalty != 1.0 else used
        sampling = self.limits.sampling
        if sampling is not None and sampling.temperature:
            column = self._draw(penalise(logits.float(), used, penalty), sampling)
        elif self.choose is greedy:
            column = greedy_token(logits, used, penalty)
        else:
            column = self.choose(penalise(logits.float(), used, penalty))
        # Choosing among a few columns gives a column's number, not yet a token id.
        return choices[column] if step.choices else column

    def _draw(self, scores: Tensor, sampling: Sampling) -> Tensor:
        """Draws a column of the scores (sequences, columns) for each sequence."""
        draws = self.buffers.draws[: len(scores)]
        # Its place in the reply alone says which draw a token gets, so no batch changes it.
        at = self._place(len(scores)).expand(-1, -1, 2)
        return sample(scores, draws.gather(1, at)[:, 0], sampling)

    def _place(self, sequences: int) -> Tensor:
        """Returns the place in the reply of the token being chosen, (sequences, 1, 1)."""
        # The count of an ended sequence may be the limit.
        at = self.buffers.count[:sequences].clamp(max=self.limits.max_new_tokens - 1)
        return at[:, None, None]

    def _record(self, target: Tensor, values: Tensor) -> None:
        """Records values (sequences, W) for the token being chosen in a buffer (S, M, W)."""
        at = self._place(len(values)).expand(-1, -1, values.shape[-1])
        recorded, live = target[: len(values)], self.buffers.live[: len(values), None, None]
        # The old value of an ended sequence is written back, since selecting the live sequences
        # would make a shape that the host must wait for.
        recorded.scatter_(1, at, torch.where(live, values[:, None], recorded.gather(1, at)))

    def _record_tokens(self, tokens: Tensor) -> None:
        """Appends tokens (sequences, T) to the replies of live sequences."""
        buffers, sequences = self.buffers, len(tokens)
        at = buffers.count[:sequences, None] + torch.arange(tokens.shape[1], device=tokens.device)
        at = at.clamp(max=self.limits.max_new_tokens - 1)
        reply, live = buffers.tokens[:sequences], buffers.live[:sequences, None]
        reply.scatter_(1, at, torch.where(live, tokens, reply.gather(1, at)))

    def _record_forced(self, hidden: Tensor, step: ForcedStep) -> None:
        """Records map states and used tokens of forced tokens, as for chosen ones.

        Args:
            hidden: (sequences, 1 + forced, H), each predicts the token after it.
            step: gives the forced tokens.
        """
        buffers, sequences = self.buffers, len(hidden)
        live = buffers.live[:sequences, None]
        for place, token in enumerate(step.forced):
            if token in self._map_tokens:
                k = self._map_tokens.index(token)
                is_first = live & ~buffers.has_map[:sequences, k, None]
                states = buffers.map_states[:sequences, k]
                buffers.map_states[:sequences, k] = torch.where(is_first, hidden[:, place], states)
                buffers.has_map[:sequences, k] |= live[:, 0]
        if buffers.used.shape[1] and step.forced:
            _, forced = self._step_ids[step]
            buffers.used[:sequences].index_fill_(1, forced, True)
