"""Replicas of a model, each on a device of its own, which answer one queue of requests together.

Each replica has its own engine and thread; Python's lock lets them run side by side, because torch
gives it up in every operation and while it waits for a GPU. A replica takes requests when it has
room for them, so one with long replies takes fewer. But it never holds more than an equal part of
what is unanswered: the host launches work long before a GPU does it, and the first replica would
otherwise take all of a short queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock

import torch

from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder, MapQueue
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.vision import Grid
from tts_verifier.verifiers.imagedoctor.pairs import Answer
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits, GenerationRequest
from tts_verifier.verifiers.imagedoctor.text.answer_template import AnswerTemplate
from tts_verifier.verifiers.imagedoctor.text.verdict import ReplyTokens
from tts_verifier.verifiers.imagedoctor.threads import on_device, run_together


class Replica:
    """A copy of the model with what runs it. One thread at a time may use it.

    Args:
        model: on its device.
        limits: of free replies.
        template: what its second engine fills in; that engine takes no memory until it is used.
        sequences: see `Engine`.
    """

    def __init__(
        self,
        model: ImageDoctorModel,
        limits: GenerationLimits,
        template: AnswerTemplate,
        sequences: int | None = None,
    ) -> None:
        self.model = model
        self.engine = Engine(model, limits, sequences=sequences)
        steps = template.forced_steps
        # An empty template makes the count 0; the engine is then never called.
        count = sum(1 + len(step.forced) for step in steps)
        filled_in = replace(limits, max_new_tokens=count, forced_steps=steps)
        self.template_engine = Engine(model, filled_in, sequences=sequences)
        self.map_decoder = MapDecoder(model)

    @property
    def device(self) -> torch.device:
        """Where it computes; with layers on several devices, where images are sent to."""
        return self.model.lm_head.weight.device

    def forget(self) -> None:
        """Frees buffers and captured graphs, which read weights and buffers at fixed addresses."""
        for part in (self.engine, self.template_engine, self.map_decoder):
            part.forget()

    def answer(
        self, share: Share, template: AnswerTemplate, grid: Grid | None, *, expected: int
    ) -> dict[int, Answer]:
        """Answers requests of a queue until none is left.

        Args:
            share: gives the requests.
            template: what is given of the replies.
            grid: of every image's patches, to decode heatmaps; None = no heatmaps.
            expected: how many requests there may be, about.

        Returns:
            Place in the queue -> answer.
        """
        engine = self.template_engine if template.forced_steps else self.engine
        # Maps are decoded in groups as replies end, so their states and features are freed early.
        map_queue = MapQueue(self.map_decoder)
        replies: dict[int, ReplyTokens] = {}
        # A verdict depends on the settings alone, not on the precision that a thread asks for.
        with on_device(self.device), torch.autocast(self.device.type, enabled=False):
            for number, reply in engine.replies(share, expected=expected):
                place = share.answered(number)
                if grid is not None:
                    map_queue.add(place, reply, grid)
                replies[place] = ReplyTokens.of(reply, template)
            maps = map_queue.finish()
        return {place: (reply, maps.get(place, {})) for place, reply in replies.items()}


class SharedRequests:
    """A queue of requests that several engines answer. Safe to share between threads.

    Args:
        requests: taken lazily, by one thread at a time.
        count: how many there are.
        shares: how many engines there are.
    """

    def __init__(self, requests: Iterator[GenerationRequest], count: int, shares: int) -> None:
        self._requests, self._count = requests, count
        self._taken, self._stopped, self._taking = 0, False, Lock()
        self.shares = [Share(self) for _ in range(shares)]

    @property
    def ended(self) -> bool:
        """Whether no request is left, or none is wanted any more."""
        return self._stopped or self._taken == self._count

    @property
    def stopped(self) -> bool:
        """Whether nobody wants the replies any more."""
        return self._stopped

    def stop(self) -> None:
        """Ends the queue, and cancels what is running."""
        self._stopped = True

    def take(self, held: int) -> tuple[int, GenerationRequest] | None:
        """Returns the next request with its place; None if there is none for this engine now.

        Args:
            held: how many unanswered requests the engine has.
        """
        with self._taking:
            unanswered = self._count - sum(share.done for share in self.shares)
            # Rounded up: an engine that holds nothing gets a request as long as there is one.
            if self.ended or held >= -(-unanswered // len(self.shares)):
                return None
            try:
                request = next(self._requests)
            except BaseException:
                # A generator that has raised would seem to have ended to the other engines.
                self._stopped = True
                raise
            self._taken += 1
            return self._taken - 1, request


class Share:
    """What one engine takes of a queue; a `LiveSource`. Belongs to the engine's thread."""

    def __init__(self, queue: SharedRequests) -> None:
        self._queue = queue
        self.places: list[int] = []
        """The place in the queue of each request that was taken."""
        self.done = 0
        """How many of them are answered."""

    def __iter__(self) -> Iterator[GenerationRequest | None]:
        """Yields requests, and None while the engine holds its part."""
        while not self._queue.ended:
            taken = self._queue.take(len(self.places) - self.done)
            if taken is not None:
                self.places.append(taken[0])
            yield None if taken is None else taken[1]

    def wait(self) -> None:
        """Returns at once: an engine that holds nothing gets a request, or the queue has ended."""

    def wait_for_prepared(self) -> None:
        """Returns at once: taking a request prepares it."""

    def is_cancelled(self, number: int) -> bool:
        """Says whether the queue was stopped."""
        return self._queue.stopped

    def answered(self, number: int) -> int:
        """Notes that a request is answered, and returns its place in the queue."""
        self.done += 1
        return self.places[number]


def answer_together(
    replicas: Sequence[Replica],
    requests: Iterator[GenerationRequest],
    count: int,
    template: AnswerTemplate,
    grid: Grid | None,
) -> list[Answer]:
    """Answers requests with one or several replicas.

    The first replica works in the calling thread, each other one in a thread of its own.

    Args:
        replicas: on different devices.
        requests: taken lazily.
        count: how many requests there are, at least 1.
        template: see `Replica.answer`.
        grid: see `Replica.answer`.

    Returns:
        An answer for each request, in order.

    Raises:
        BaseException: the first that a replica raised; by then all the others have stopped.
    """
    working = replicas[:count]
    queue = SharedRequests(requests, count, len(working))
    answers: dict[int, Answer] = {}

    def work(replica: Replica, share: Share) -> None:
        try:
            # Equal parts; the engine rounds its rows up to a power of two.
            expected = -(-count // len(working))
            answers.update(replica.answer(share, template, grid, expected=expected))
        except RuntimeError as error:  # torch's, such as memory that ran out
            if len(working) > 1:
                error.add_note(
                    f"This happened on {replica.device}. The verifier's other devices, "
                    f"{_others(working, replica)}, were stopped, and their replies are lost."
                )
            raise

    works = [partial(work, *pair) for pair in zip(working, queue.shares, strict=True)]
    run_together(works, queue.stop)
    return [answers[place] for place in range(count)]


def _others(replicas: Sequence[Replica], replica: Replica) -> str:
    return ", ".join(str(other.device) for other in replicas if other is not replica)
