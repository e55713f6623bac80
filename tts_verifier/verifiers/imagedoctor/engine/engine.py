"""The decoding engine: schedule, prefill, decode, finish.

Requests wait in a queue until sequences are free, are prefilled into them in batches, and are
then decoded together, one token a step for every sequence. Sequences are refilled as their replies
end (continuous batching). The host looks only every few steps at which sequences have ended;
tokens that such a sequence would generate after its end are not recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.verifiers.imagedoctor.engine.decode_step import CAPTURES, FREE_STEP, DecodeStep
from tts_verifier.verifiers.imagedoctor.engine.finish import ended_sequences, read_replies
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import (
    allocate_buffers,
    max_sequences,
    sequences_that_fit,
)
from tts_verifier.verifiers.imagedoctor.engine.layers import FusedModel, fuse_model
from tts_verifier.verifiers.imagedoctor.engine.next_token import ChooseToken, greedy
from tts_verifier.verifiers.imagedoctor.engine.prefill import prefill
from tts_verifier.verifiers.imagedoctor.engine.scheduler import (
    CPU_REFILL_SHARE,
    REFILL_SHARE,
    RunningSequence,
    Scheduler,
)
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.plain import check_plain
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device
from tts_verifier.verifiers.imagedoctor.requests import (
    GeneratedReply,
    GenerationLimits,
    GenerationRequest,
)

STEPS_PER_CHECK: Final = 8
"""Decode steps between two checks for ended replies. A check waits for a GPU."""
CPU_STEPS_PER_CHECK: Final = 1
"""The same on a CPU, where a check costs nothing, and a step for a reply that has ended does."""
EXPECTED_PROMPT: Final = 1024
"""Tokens assumed for a prompt when sequences are counted by memory."""
REPLY_BLOCK: Final = 512
"""Tokens of a reply for which capacity is reserved at first, and added whenever they are used up.
A checkpoint may allow 2048, which few replies need; reserving them would leave memory for a third
of the sequences."""


class Engine:
    """Generates replies to images and prompts, each as if it were the only one.

    The first call of `replies` fuses weights: it **re-points `parameter.data` of the caller's
    model** into larger matrices (see `ops.fused_weights`). Values, names and state dict stay, and
    in-place updates of the parameters, as by `copy_weights`, take effect in the next step.
    Buffers and captured steps are kept between calls. Not safe to share between threads: one call
    of `replies` at a time, which `shared_calls` sees to, or a `RequestQueue` of several threads.

    Args:
        model: on its devices, for inference; its weights may change between calls.
        limits: of every reply.
        sequences: how many replies are generated at a time; None = as many as the queue has, the
            free memory allows, and the device gains from. Halved when memory runs out.
        choose: chooses each next token where the limits ask for no sampling.
        capture: captures decode steps as CUDA graphs where that is possible. A `choose` that
            works on the host needs False.

    Raises:
        InputError: `choose` is given beside limits that draw tokens.
    """

    def __init__(
        self,
        model: ImageDoctorModel,
        limits: GenerationLimits,
        *,
        sequences: int | None = None,
        choose: ChooseToken = greedy,
        capture: bool = True,
    ) -> None:
        if choose is not greedy and limits.temperature:
            raise InputError(
                "Tokens are either chosen by `choose` or drawn with the limits' sampling, got "
                f"{choose!r} and {limits.sampling}. Leave one of them out."
            )
        self.model, self.limits = model, limits
        self._most, self._measured = sequences or max_sequences(model), sequences is None
        self._choose, self._capture = choose, capture
        self._addresses: tuple[int, ...] = ()
        self._decode_step: DecodeStep | None = None
        self._visual: dict[int, Tensor] = {}
        self._warned = False

    @property
    def decode_step(self) -> DecodeStep | None:
        """The decode step over the current buffers, for timing; None before the first prefill."""
        return self._decode_step

    def forget(self) -> None:
        """Frees the buffers and captured steps; the next call makes them anew."""
        self._decode_step, self._addresses = None, ()

    @property
    def sequences(self) -> int:
        """How many replies are generated at a time by the next call with a long queue."""
        return self._count_sequences(self._most)

    @torch.inference_mode()
    def replies(
        self, requests: Iterable[GenerationRequest | None], *, expected: int | None = None
    ) -> Iterator[tuple[int, GeneratedReply]]:
        """Generates a reply to every request.

        Requests are taken as sequences become free. Sort them by falling length of the prompt, so
        the KV cache need not grow later. Where a source yields None, it has no request yet and is
        asked again after some steps. A `LiveSource`, such as `RequestQueue`, is waited for while
        nothing runs, and may cancel requests; those get no reply.

        Args:
            requests: taken lazily.
            expected: how many requests there are, about; None = many.

        Yields:
            (place among the requests, reply), in the order in which replies end.

        Raises:
            InputError: the model has adapters, hooks or layers that the engine would ignore.
            torch.OutOfMemoryError: memory does not suffice for a single sequence.
        """
        refill = not self.limits.forced_steps
        fused = self._fuse()
        sequences = self._count_sequences(self._most if expected is None else expected)
        share = CPU_REFILL_SHARE if self._on_cpu else REFILL_SHARE
        scheduler = Scheduler(requests, sequences, refill=refill, refill_share=share)
        self._visual = {}
        while scheduler.has_work():
            self._drop_cancelled(scheduler)
            if scheduler.is_idle():
                scheduler.wait()
                continue
            out_of_memory = False
            finished: list[tuple[int, GeneratedReply]] = []
            try:
                finished = self._step(fused, scheduler)
            except torch.OutOfMemoryError:
                if scheduler.sequences == 1:
                    raise
                out_of_memory = True
            # Outside of `except`, because the exception keeps the failed step's tensors alive.
            if out_of_memory:
                self._halve(scheduler.sequences)
                scheduler.restart(self._most)
            yield from finished

    def _step(self, fused: FusedModel, scheduler: Scheduler) -> list[tuple[int, GeneratedReply]]:
        """Schedules, prefills, decodes some tokens, and returns the replies that have ended."""
        for batch in scheduler.prefill_batches():
            self._prefill(fused, scheduler, batch)
        decode_step = self._decode(fused, scheduler)
        return self._finish(decode_step, scheduler)

    def _drop_cancelled(self, scheduler: Scheduler) -> None:
        """Frees the sequences whose replies nobody wants any more."""
        if (dropped := scheduler.drop_cancelled()) and self._decode_step is not None:
            for running in dropped.values():
                self._visual.pop(running.number, None)
            live = self._decode_step.buffers.live
            live.index_fill_(0, to_device(torch.tensor(list(dropped)), live.device), False)

    def _prefill(
        self, fused: FusedModel, scheduler: Scheduler, batch: dict[int, RunningSequence]
    ) -> None:
        """Prefills a batch of the running sequences."""
        requests = [running.request for running in batch.values()]
        longest = max(len(request.ids) for request in requests)
        tokens = longest + min(REPLY_BLOCK, self.limits.max_new_tokens)
        # If other sequences are running, they must survive growth.
        keep = len(scheduler.running) > len(batch)
        buffers = self._reserve(fused, scheduler.sequences, tokens, keep=keep).buffers
        visual = prefill(fused, buffers, list(batch), requests)
        if self.limits.temperature:
            buffers.seed(list(batch), [request.seed for request in requests])
        for running, features in zip(batch.values(), visual, strict=True):
            self._visual[running.number] = features

    def _decode(self, fused: FusedModel, scheduler: Scheduler) -> DecodeStep:
        """Runs the decode steps until the next check for every running sequence."""
        count = CPU_STEPS_PER_CHECK if self._on_cpu else STEPS_PER_CHECK
        free_steps = [FREE_STEP] * min(count, self.limits.max_new_tokens)
        steps = self.limits.forced_steps or free_steps
        added = sum(1 + len(step.forced) for step in steps)
        decode_step = self._grow(fused, scheduler, added)
        buffers = decode_step.buffers
        if moves := scheduler.compact():
            buffers.move(list(moves), list(moves.values()))
        span, longest = scheduler.span(), scheduler.longest()
        # Replies that end between checks are counted on. The bound keeps their count from exceeding
        # the capacity.
        most = buffers.capacity - 1
        for step in steps:
            decode_step(span, longest, step)
            longest = min(longest + 1 + len(step.forced), most)
        # Not after each step: it takes time for each sequence, which the GPU would wait for.
        scheduler.advance(added, most=most)
        return decode_step

    def _finish(
        self, decode_step: DecodeStep, scheduler: Scheduler
    ) -> list[tuple[int, GeneratedReply]]:
        """Frees the sequences whose replies have ended, and returns these replies."""
        buffers = decode_step.buffers
        ended = ended_sequences(buffers, scheduler.running)
        if not ended:
            return []
        numbers = [scheduler.running[sequence].number for sequence in ended]
        visual = [self._visual[number] for number in numbers]
        replies = read_replies(buffers, ended, visual, eos=self.limits.eos)
        scheduler.finish(ended)
        for number in numbers:
            del self._visual[number]
        return list(zip(numbers, replies, strict=True))

    def _grow(self, fused: FusedModel, scheduler: Scheduler, added: int) -> DecodeStep:
        """Returns a decode step with capacity for `added` more tokens of the running sequences."""
        most = self.limits.max_new_tokens
        tokens = scheduler.longest_after(added, most=most)
        current = self._decode_step
        if current is None or current.buffers.capacity < tokens:
            # By a block at least, because growth copies the cache and captures all steps again.
            tokens = scheduler.longest_after(max(added, REPLY_BLOCK), most=most)
        return self._reserve(fused, scheduler.sequences, tokens, keep=True)

    def _reserve(self, fused: FusedModel, sequences: int, tokens: int, *, keep: bool) -> DecodeStep:
        """Returns a decode step over so many sequences with capacity for `tokens` tokens each.

        If the current buffers are too small, larger ones replace them, with the state of the
        running sequences if `keep` asks for it.
        """
        current = self._decode_step
        if current is not None and current.buffers.fits(sequences, tokens):
            return current
        if not keep:
            # Before larger ones are allocated, so that both need not fit.
            self._decode_step = current = None
        buffers = allocate_buffers(self.model, sequences, tokens, self.limits)
        if current is not None:
            buffers.copy_from(current.buffers)
        self._decode_step = DecodeStep(
            fused, buffers, self.limits, choose=self._choose, capture=self._capture
        )
        return self._decode_step

    def _fuse(self) -> FusedModel:
        """Fuses the weights, and drops captured steps if any parameter has moved in memory."""
        check_plain(self.model)
        fused = fuse_model(self.model)
        # Captured steps read the weights at fixed addresses.
        tensors = (*self.model.parameters(), *self.model.buffers())
        addresses = tuple(tensor.data_ptr() for tensor in tensors)
        if addresses != self._addresses:
            self._addresses, self._decode_step = addresses, None
        return fused

    @property
    def _on_cpu(self) -> bool:
        return self.model.lm_head.weight.device.type == "cpu"

    def _count_sequences(self, expected: int) -> int:
        """Returns how many sequences to decode together for a queue of `expected` requests."""
        if not self._measured:
            return self._most
        # Powers of two, so that queues of similar lengths share buffers and captured steps.
        wanted = min(self._most, 1 << max(expected - 1, 0).bit_length())
        current = self._decode_step.buffers if self._decode_step else None
        if current is not None and current.sequences >= wanted:
            return current.sequences
        capacity = EXPECTED_PROMPT + min(REPLY_BLOCK, self.limits.max_new_tokens)
        fit = sequences_that_fit(self.model, capacity, self.limits, current)
        if current is not None:
            fit = max(fit, current.sequences)
        return min(wanted, fit)

    def _halve(self, sequences: int) -> None:
        """Frees the buffers, and goes on with half of so many sequences."""
        self._decode_step, self._visual = None, {}
        # The allocator's cached blocks have the sizes of the larger buffers.
        if torch.cuda.is_available():
            with CAPTURES:
                torch.cuda.empty_cache()
        if not self._warned:
            warnings.warn(
                f"Memory ran out with batch_size {sequences}; going on with half as many, "
                "and half again where needed. Give a smaller batch_size to avoid the wait.",
                RunWarning,
                stacklevel=3,
            )
        self._warned = True
        self._most = sequences // 2


def generate(
    model: ImageDoctorModel,
    requests: Sequence[GenerationRequest],
    limits: GenerationLimits,
    *,
    choose: ChooseToken = greedy,
    capture: bool = True,
) -> list[GeneratedReply]:
    """Generates the replies to one batch of requests together, and returns them in order.

    The arguments are those of `Engine`.
    """
    sequences = max(len(requests), 1)
    engine = Engine(model, limits, sequences=sequences, choose=choose, capture=capture)
    replies = dict(engine.replies(requests))
    return [replies[i] for i in range(len(requests))]
