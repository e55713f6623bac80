"""A queue through which several threads ask one running engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from threading import Condition

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.requests import GeneratedReply, GenerationRequest


class RequestQueue:
    """Collects requests while an engine answers earlier ones, and hands the replies out.

    One thread calls `serve`; any thread submits. Requests join the running ones as sequences
    become free, and each future is answered as its reply ends. `future.cancel()` takes a request
    back, waiting or running: its sequence is free after the next check. `asyncio.wrap_future`
    makes a future awaitable. A queue serves once, until it is closed.

    Args:
        engine: answers the requests; nobody else may use it meanwhile.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Guards all that follows; notified when a request comes or the queue is closed.
        self._changed = Condition()
        self._pending: deque[tuple[GenerationRequest, Future[GeneratedReply]]] = deque()
        self._taken: dict[int, Future[GeneratedReply]] = {}
        self._count, self._closed = 0, False

    def submit(self, request: GenerationRequest) -> Future[GeneratedReply]:
        """Adds a request.

        Returns:
            The future reply. It can be cancelled until it is done, so it never says `running`.

        Raises:
            InputError: the request does not fit the engine's model, or the queue is closed.
        """
        check_request(request, self._engine.model.config)
        future: Future[GeneratedReply] = Future()
        with self._changed:
            if self._closed:
                raise InputError("The queue of requests is closed. Make another one.")
            self._pending.append((request, future))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Takes no more requests; `serve` returns when those that it has are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def serve(self) -> None:
        """Answers requests until the queue is closed and empty.

        Raises:
            Exception: what the engine raised; all open futures get it too, and the queue closes.
        """
        try:
            for number, reply in self._engine.replies(self):
                future = self._taken[number]
                # False if the future was cancelled just now.
                if future.set_running_or_notify_cancel():
                    future.set_result(reply)
                del self._taken[number]
        except BaseException as error:
            self._fail(error)
            raise

    def __iter__(self) -> Iterator[GenerationRequest | None]:
        """Yields requests for the engine, and None where there is none yet."""
        while True:
            with self._changed:
                request = self._take()
                if request is None and self._closed:
                    return
            yield request

    def wait(self) -> None:
        """Returns once a request is there or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)

    def is_cancelled(self, number: int) -> bool:
        """Says whether a request was cancelled, and forgets it if so."""
        future = self._taken[number]
        if cancelled := future.cancelled():
            future.set_running_or_notify_cancel()  # wakes those that wait for the future
            del self._taken[number]
        return cancelled

    def _take(self) -> GenerationRequest | None:
        """Takes the first request that was not cancelled."""
        while self._pending:
            request, future = self._pending.popleft()
            if not future.cancelled():
                self._taken[self._count] = future
                self._count += 1
                return request
            future.set_running_or_notify_cancel()
        return None

    def _fail(self, error: BaseException) -> None:
        """Closes the queue, and gives the error to all who wait for a reply."""
        with self._changed:
            self._closed = True
            futures = [*self._taken.values(), *(future for _, future in self._pending)]
            self._taken, self._pending = {}, deque()
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def check_request(request: GenerationRequest, config: ImageDoctorConfig) -> None:
    """Checks that a request can be answered; a wrong one would fail its whole batch.

    Raises:
        InputError: prompt, image or grid do not fit each other or the model.
    """
    merge, patch = int(config.vision["spatial_merge_size"]), int(config.vision["patch_size"])
    values = 3 * int(config.vision["temporal_patch_size"]) * patch**2
    rows, columns = request.grid
    if rows < 1 or columns < 1 or rows % merge or columns % merge:
        raise InputError(f"A grid must have whole cells of {merge} patches, got {request.grid}.")
    if request.patches.shape != (rows * columns, values):
        raise InputError(
            f"The patches of a grid of {rows} x {columns} must be ({rows * columns}, {values}), "
            f"got {request.patches.shape}. Prepare them with the checkpoint's processor."
        )
    tokens, most = rows * columns // merge**2, int(config.text["max_position_embeddings"])
    if (found := sum(i == config.image_token_id for i in request.ids)) != tokens:
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
