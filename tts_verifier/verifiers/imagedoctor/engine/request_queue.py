"""A queue through which several threads ask running engines, one of each device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from threading import Condition
from typing import Any, Final, NamedTuple

import numpy as np

from tts_verifier.errors import InputError, as_exception
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.requests import GeneratedReply, GenerationRequest
from tts_verifier.verifiers.imagedoctor.threads import on_device, run_together

_PREPARED_SECONDS: Final = 0.02
"""Since its announcement, that running replies wait for a request; most are prepared far sooner."""


class _Open(NamedTuple):
    """A request that is not answered yet."""

    request: GenerationRequest
    """What is asked."""
    wanted: Future[Any]
    """Cancelled = nobody wants the reply any more. Gets the error of an engine."""
    answer: Callable[[GeneratedReply], None]
    """Takes the reply."""


class RequestQueue:
    """Collects requests while engines answer earlier ones, and hands the replies out.

    One thread calls `serve`; any thread submits. Requests join the running ones as sequences
    become free, and each future is answered as its reply ends. `future.cancel()` takes a request
    back, waiting or running: its sequence is free after the next check. `asyncio.wrap_future`
    makes a future awaitable. A queue serves once, until it is closed.

    Args:
        engine: answers the requests; nobody else may use it meanwhile.
        more: engines of copies of its model on other devices, with equal limits.
    """

    def __init__(self, engine: Engine, *more: Engine) -> None:
        self._config = engine.model.config
        self._sources = [_Source(self, each) for each in (engine, *more)]
        # Guards all that follows; notified when a request comes, when no more are being prepared,
        # and when the queue is closed.
        self._changed = Condition()
        self._pending: deque[_Open] = deque()
        self._preparing, self._announced = 0, 0.0
        """How many requests are being prepared, and when the last one was announced."""
        self._closed, self._stopped = False, False

    @property
    def stopped(self) -> bool:
        """Whether an engine has failed, so that none goes on."""
        return self._stopped

    @property
    def ended(self) -> bool:
        """Whether no request is there or will come, or none is answered any more."""
        with self._changed:
            return self._stopped or (self._closed and not self._pending)

    def begin_preparing(self) -> None:
        """Announces a request. `end_preparing` must follow once it is added or given up.

        An engine that prefills prompts waits a moment for it, so that it joins their batch.
        """
        with self._changed:
            self._preparing += 1
            self._announced = time.monotonic()

    def end_preparing(self) -> None:
        """Ends one announcement."""
        with self._changed:
            self._preparing -= 1
            if not self._preparing:
                self._changed.notify_all()

    def submit(self, request: GenerationRequest) -> Future[GeneratedReply]:
        """Adds a request.

        Returns:
            The future reply. It can be cancelled until it is done, so it never says `running`.

        Raises:
            InputError: the request does not fit the engines' model, or the queue is closed.
        """
        future: Future[GeneratedReply] = Future()
        self.add(request, future, partial(_give, future))
        return future

    def add(
        self,
        request: GenerationRequest,
        wanted: Future[Any],
        answer: Callable[[GeneratedReply], None],
    ) -> None:
        """Adds a request whose reply is one step on the way to a future's result.

        Args:
            request: see `submit`.
            wanted: to cancel it takes the request back; it gets the error if an engine fails.
            answer: called with the reply by an engine's thread, which waits for it.

        Raises:
            InputError: see `submit`.
        """
        check_request(request, self._config)
        with self._changed:
            if self._closed:
                raise InputError("The queue of requests is closed. Make another one.")
            self._pending.append(_Open(request, wanted, answer))
            self._changed.notify_all()

    def close(self) -> None:
        """Takes no more requests; `serve` returns when those that it has are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def serve(self) -> None:
        """Answers requests until the queue is closed and empty.

        The first engine works in this thread, each other one in a thread of its own.

        Raises:
            BaseException: what an engine raised. The queue closes, and all open futures get it too,
                as a RuntimeError if it is no Exception.
        """
        try:
            run_together([source.serve for source in self._sources], self._stop)
        except BaseException as error:
            self._fail(error)
            raise

    def wait(self) -> None:
        """Returns once a request is there or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)

    def wait_for_prepared(self) -> None:
        """Returns once a request is there, or none is being prepared, or it takes too long."""
        with self._changed:
            if not self._preparing:
                return
            # From the announcement: a slow one must not hold up step after step.
            left = self._announced + _PREPARED_SECONDS - time.monotonic()
            if left > 0:
                self._changed.wait_for(
                    lambda: self._pending or not self._preparing or self._closed, left
                )

    def take(self, held: int) -> _Open | None:
        """Takes the first request that was not cancelled; None if there is none for an engine now.

        Args:
            held: how many unanswered requests the engine has, at most an equal part of all.
        """
        with self._changed:
            while self._pending and self._pending[0].wanted.cancelled():
                self._pending.popleft().wanted.set_running_or_notify_cancel()
            unanswered = len(self._pending) + sum(len(s.taken) for s in self._sources)
            if not self._pending or held >= -(-unanswered // len(self._sources)):
                return None
            return self._pending.popleft()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = self._closed = True
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        """Gives the error to all who wait for a reply; no engine is running any more."""
        taken = [each for source in self._sources for each in source.taken.values()]
        with self._changed:
            taken += self._pending
            self._pending.clear()
        for each in taken:
            if each.wanted.set_running_or_notify_cancel():
                each.wanted.set_exception(as_exception(error))


class _Source:
    """What one engine takes of a queue; a `LiveSource`. Belongs to the engine's thread."""

    def __init__(self, queue: RequestQueue, engine: Engine) -> None:
        self._queue, self._engine, self._count = queue, engine, 0
        self.taken: dict[int, _Open] = {}
        """By the engine's number of the request."""

    def serve(self) -> None:
        """Answers requests until the queue has ended."""
        with on_device(self._engine.model.lm_head.weight.device):
            for number, reply in self._engine.replies(self):
                self.taken[number].answer(reply)
                del self.taken[number]

    def __iter__(self) -> Iterator[GenerationRequest | None]:
        """Yields requests for the engine, and None where there is none for it now."""
        while not self._queue.ended:
            if (found := self._queue.take(len(self.taken))) is None:
                yield None
                continue
            self.taken[self._count] = found
            self._count += 1
            yield found.request

    def wait(self) -> None:
        """Returns once a request is there or the queue is closed."""
        self._queue.wait()

    def wait_for_prepared(self) -> None:
        """Returns once a request is there, or none is about to come."""
        self._queue.wait_for_prepared()

    def is_cancelled(self, number: int) -> bool:
        """Says whether a request is not wanted any more; forgets it if it was cancelled."""
        if self._queue.stopped:
            return True
        wanted = self.taken[number].wanted
        if cancelled := wanted.cancelled():
            wanted.set_running_or_notify_cancel()  # wakes those that wait for the future
            del self.taken[number]
        return cancelled


def _give(future: Future[GeneratedReply], reply: GeneratedReply) -> None:
    # False if the future was cancelled just now.
    if future.set_running_or_notify_cancel():
        future.set_result(reply)


def check_request(request: GenerationRequest, config: ImageDoctorConfig) -> None:
    """Checks that a request can be answered; a wrong one would fail its whole batch.

    Raises:
        InputError: prompt, image or grid do not fit each other or the model.
    """
    merge, patch = int(config.vision["spatial_merge_size"]), int(config.vision["patch_size"])
    levels = request.level_values is not None
    frames = 1 if levels else int(config.vision["temporal_patch_size"])
    values, dtype = 3 * frames * patch**2, np.uint8 if levels else np.float32
    rows, columns = request.grid
    if rows < 1 or columns < 1 or rows % merge or columns % merge:
        raise InputError(f"A grid must have whole cells of {merge} patches, got {request.grid}.")
    if request.patches.shape != (rows * columns, values) or request.patches.dtype != dtype:
        raise InputError(
            f"The patches of a grid of {rows} x {columns} must be {np.dtype(dtype)} "
            f"({rows * columns}, {values}){' beside level_values' if levels else ''}, got "
            f"{request.patches.dtype} {request.patches.shape}. Prepare them with the checkpoint's "
            "processor."
        )
    if request.level_values is not None and request.level_values.shape != (3, 256):
        raise InputError(
            f"level_values must be (3, 256), got {request.level_values.shape}. Take them from the "
            "checkpoint's processor."
        )
    tokens, most = rows * columns // merge**2, int(config.text["max_position_embeddings"])
    if (found := request.ids.count(config.image_token_id)) != tokens:
        raise InputError(
            f"A prompt must have an image token for each of its image's {tokens} merged tokens, "
            f"got {found}."
        )
    if len(request.ids) >= most:
        raise InputError(f"A prompt must have fewer than {most} tokens, got {len(request.ids)}.")
    vocabulary = int(config.text["vocab_size"])
    if min(request.ids) < 0 or max(request.ids) >= vocabulary:
        raise InputError(
            f"Token ids must be from 0 to {vocabulary - 1}, got {min(request.ids)} to "
            f"{max(request.ids)}. Encode the prompt with the checkpoint's tokenizer."
        )
