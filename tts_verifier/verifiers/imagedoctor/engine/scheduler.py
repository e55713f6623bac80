"""Decides which request enters which sequence, and which sequences a decode step runs over.

The engine's buffers have room for a fixed number of sequences; a sequence that has ended leaves its
row free for the next request. The scheduler only counts: it holds no tensor and imports no torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from tts_verifier.verifiers.imagedoctor.requests import GenerationRequest

PREFILL_PATCHES: Final = 20_736
"""Prompts are prefilled together until their images have so many patches, as 16 of 504 x 504 pixels
have in the released model: enough to fill a GPU, and a bound on memory."""
REFILL_SHARE: Final = 4
CPU_REFILL_SHARE: Final = 8
"""Sequences are refilled once at least one in so many is free, or all are. Running sequences wait
during a prefill, so each one should admit several requests. A CPU reads four prompts together as
fast as many, and gains from a batch that is full."""

IDLE_SECONDS: Final = 0.005
"""Time between two questions to a source that has nothing yet and cannot be waited for."""


@runtime_checkable
class LiveSource(Protocol):
    """A source of requests that arrive while others are answered; see `request_queue`."""

    def __iter__(self) -> Iterator[GenerationRequest | None]:
        """Yields requests, and None where there is none yet; ends when none will come."""

    def wait(self) -> None:
        """Returns once there may be a request, or none will come."""

    def wait_for_prepared(self) -> None:
        """Returns once there may be a request, or none is about to come."""

    def is_cancelled(self, number: int) -> bool:
        """Says whether nobody wants the reply to the request of this number any more."""


@dataclass(slots=True, eq=False)
class RunningSequence:
    """A request whose reply is being decoded, in one row of the buffers."""

    number: int
    """The request's place among all requests of the call."""
    request: GenerationRequest
    """The request itself; it goes back into the queue if memory runs out."""
    cached: int
    """An upper bound of the tokens in the sequence's KV cache."""


class Scheduler:
    """The queue of requests and the sequences that are running.

    Requests are taken from their source only when sequences are free for them, so the source may
    prepare images while the device works on earlier ones. Not safe to share between threads.

    Args:
        requests: the requests, numbered in their order; None says that there is none yet.
        sequences: how many sequences there are.
        refill: whether free sequences are refilled while others run. Without it, the engine
            generates one full set of sequences after another; replies of equal length, as in
            forced steps, need nothing else.
        refill_share: see `REFILL_SHARE`.
    """

    def __init__(
        self,
        requests: Iterable[GenerationRequest | None],
        sequences: int,
        *,
        refill: bool = True,
        refill_share: int = REFILL_SHARE,
    ) -> None:
        self.sequences, self._refill_share = sequences, refill_share
        self.running: dict[int, RunningSequence] = {}
        self._refill = refill
        self._live = requests if isinstance(requests, LiveSource) else None
        self._source = iter(requests)
        self._taken, self._ended = 0, False
        self._waiting: deque[tuple[int, GenerationRequest]] = deque()

    def has_work(self) -> bool:
        """Says whether any sequence is running, or any request is waiting or may still come."""
        return bool(self.running) or self.has_waiting() or not self._ended

    def is_idle(self) -> bool:
        """Says whether there is nothing to do but to wait for a request."""
        return not self.running and not self._waiting

    def wait(self) -> None:
        """Returns once the source may have a request; takes no processor time until then."""
        if self._live is None:
            time.sleep(IDLE_SECONDS)
        else:
            self._live.wait()

    def drop_cancelled(self) -> dict[int, RunningSequence]:
        """Forgets the requests that nobody wants any more; returns those that were running."""
        if (live := self._live) is None:
            return {}
        kept = (pair for pair in self._waiting if not live.is_cancelled(pair[0]))
        self._waiting = deque(kept)
        dropped = {s: r for s, r in self.running.items() if live.is_cancelled(r.number)}
        self.finish(dropped)
        return dropped

    def has_waiting(self) -> bool:
        """Says whether a request is waiting; takes it from the source if need be."""
        if not self._waiting and not self._ended:
            self._fetch()
        return bool(self._waiting)

    def prefill_batches(self) -> Iterator[dict[int, RunningSequence]]:
        """Admits waiting requests to free sequences, unless too few sequences are free.

        Yields:
            Batches of about `PREFILL_PATCHES` patches, the admitted requests by sequence, to be
            prefilled before the next batch is taken.
        """
        free = [s for s in range(self.sequences) if s not in self.running]
        too_few = not self._refill or len(free) * self._refill_share < self.sequences
        if self.running and too_few:
            return
        while free and (requests := self._take_batch(len(free))):
            admitted = {
                sequence: RunningSequence(number, request, len(request.ids))
                for sequence, (number, request) in zip(free, requests, strict=False)
            }
            # Before they are prefilled, so that `restart` finds them if memory runs out meanwhile.
            self.running |= admitted
            free = free[len(requests) :]
            yield admitted

    def span(self) -> int:
        """Returns how many leading sequences a decode step must cover.

        The span is all of them, or a half, a quarter and so on that holds every running one.
        Few distinct spans mean few captured CUDA graphs.
        """
        span = self.sequences
        while span > 1 and max(self.running) < _half(span):
            span = _half(span)
        return span

    def compact(self) -> dict[int, int]:
        """Moves running sequences to the front if that halves the span and no request waits.

        Returns:
            The moves, source -> target, which the caller must repeat in its buffers.
        """
        # Requests that wait would fill the free sequences at once.
        half = _half(self.span())
        if self.has_waiting() or len(self.running) > half:
            return {}
        sources = [sequence for sequence in self.running if sequence >= half]
        targets = [sequence for sequence in range(half) if sequence not in self.running]
        moves = dict(zip(sources, targets, strict=False))
        for source, target in moves.items():
            self.running[target] = self.running.pop(source)
        return moves

    def longest(self) -> int:
        """Returns an upper bound of the tokens in any running sequence's KV cache."""
        return max(sequence.cached for sequence in self.running.values())

    def longest_after(self, tokens: int, *, most: int) -> int:
        """Returns `longest` after that many more tokens, if replies have `most` tokens at most."""
        running = self.running.values()
        return max(min(s.cached + tokens, len(s.request.ids) + most) for s in running)

    def advance(self, tokens: int, *, most: int) -> None:
        """Counts tokens that a decode step added to every running sequence, up to `most`."""
        for sequence in self.running.values():
            sequence.cached = min(sequence.cached + tokens, most)

    def finish(self, sequences: Iterable[int]) -> None:
        """Frees sequences whose replies have ended."""
        for sequence in sequences:
            del self.running[sequence]

    def restart(self, sequences: int) -> None:
        """Puts all running requests back, before those that wait, and goes on with `sequences`."""
        requests = [(running.number, running.request) for running in self.running.values()]
        # extendleft puts each request before the last one, hence reversed.
        self._waiting.extendleft(reversed(requests))
        self.running = {}
        self.sequences = sequences

    def _fetch(self) -> None:
        """Takes a request from the source if it has one now."""
        try:
            request = next(self._source)
        except StopIteration:
            self._ended = True
            return
        if request is not None:
            self._waiting.append((self._taken, request))
            self._taken += 1

    def _take_batch(self, most: int) -> list[tuple[int, GenerationRequest]]:
        batch: list[tuple[int, GenerationRequest]] = []
        patches, keys = 0, set[object]()
        while len(batch) < most and patches < PREFILL_PATCHES:
            # A prefill of a few prompts takes a GPU about as long as one of many.
            if self._live is not None and not self._waiting:
                self._live.wait_for_prepared()
            if not self.has_waiting():
                break
            batch.append(self._waiting.popleft())
            request = batch[-1][1]
            if (key := request.prompt_key) not in keys:
                keys.add(key)
                patches += len(request.patches)
        return batch


def _half(sequences: int) -> int:
    """Returns half of the sequences, rounded up."""
    return -(-sequences // 2)
