"""The endpoints of a server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from importlib.metadata import version
from threading import Lock
from typing import Any, Final
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from tts_verifier.errors import (
    InputError,
    ServerError,
    TTSError,
    UnsupportedError,
    is_out_of_memory,
    printable,
)
from tts_verifier.interfaces import Verifier
from tts_verifier.serve.answers import AnswerWriter, Description, description_of, with_texts
from tts_verifier.serve.bodies import (
    Gone,
    check_kind,
    check_token,
    drop_rest,
    media_type_of,
    read_body,
    until_gone,
)
from tts_verifier.serve.dispatcher import Dispatcher
from tts_verifier.serve.limits import Memory, MemoryShare, Refused, RequestLimits
from tts_verifier.serve.metrics import Metrics
from tts_verifier.serve.processes.proxy import DispatcherProxy
from tts_verifier.serve.requests import (
    RESPONSES,
    Asked,
    ChatRequest,
    ComputeRequest,
    ScoreRequest,
    asked_in_arrays,
    asked_in_chat,
    asked_in_json,
    asked_to_compute,
    described_body,
)
from tts_verifier.types import Verdict
from tts_verifier.verifiers.remote.protocol import MEDIA_TYPE, dump, pack_message, token_of

JSON: Final = "application/json"
READERS: Final = 8
"""Threads that read requests and write answers."""
_LOG: Final = logging.getLogger("uvicorn.error")
_GONE: Final = 499
"""A status that nobody receives, for the figures."""

Read = Callable[[bytes, RequestLimits, MemoryShare], Asked]
Write = Callable[[list[Verdict], Asked], bytes]


class Service:
    """What the endpoints share. Its methods run in the event loop's thread.

    Args:
        description: of the verifier.
        dispatcher: feeds the verifier.
        metrics: of the server.
        limits: of requests.
        token: that requests must have; None = none.
    """

    def __init__(
        self,
        description: Description,
        dispatcher: Dispatcher | DispatcherProxy,
        metrics: Metrics,
        limits: RequestLimits,
        token: str | None,
    ) -> None:
        self.dispatcher, self.metrics, self.limits, self.token = dispatcher, metrics, limits, token
        self.answers, self.memory = AnswerWriter(description), Memory(limits.memory)
        metrics.watch(dispatcher, self.memory)
        self._threads = ThreadPoolExecutor(READERS, "requests")

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Runs the verifier's thread. At the end all requests that were accepted are answered."""
        self.dispatcher.start()
        yield
        await asyncio.to_thread(self.dispatcher.close)
        self._threads.shutdown()

    async def answer(
        self, request: Request, read: Read, write: Write, kind: str, kinds: Collection[str] = ()
    ) -> Response:
        """Answers one request: bytes -> pictures -> verdicts -> bytes.

        Args:
            request: its body was not read yet.
            read: bytes -> what is asked; runs in a thread.
            write: verdicts -> bytes; runs in a thread.
            kind: the answer's media type.
            kinds: media types of the body; empty = any.
        """
        endpoint = request.url.path
        try:
            body = await self._answer(request, read, write, kinds)
        except Gone:
            self.metrics.answered(endpoint, _GONE)
            return Response(status_code=_GONE)
        except Exception as error:
            refused = as_refused(error)
            self.metrics.answered(endpoint, refused.status)
            return refusal(refused)
        self.metrics.answered(endpoint, 200)
        return Response(body, media_type=kind)

    async def _answer(
        self, request: Request, read: Read, write: Write, kinds: Collection[str]
    ) -> bytes:
        loop = asyncio.get_running_loop()
        with MemoryShare(self.memory) as share:
            try:
                check_token(request, self.token)
                check_kind(request, kinds)
                body = await read_body(request, self.limits, share)
            except Refused as error:
                if error.status != HTTPStatus.REQUEST_TIMEOUT:
                    await drop_rest(request, self.limits)
                raise
            try:
                asked = await loop.run_in_executor(self._threads, read, body, self.limits, share)
            except InputError as error:
                raise Refused(400, str(error)) from error
            del body
            futures = self.dispatcher.submit(asked.pixels, asked.prompts, asked.detail)
            # The dispatcher has them now; another process has copies.
            asked.pixels.clear()
            try:
                verdicts = await self._verdicts(request, futures)
            finally:
                for future in futures:
                    future.cancel()
            return await loop.run_in_executor(self._threads, write, verdicts, asked)

    async def _verdicts(self, request: Request, futures: list[Future[Verdict]]) -> list[Verdict]:
        """Waits for all verdicts, for an error, or for the client to go away."""
        gone = asyncio.ensure_future(until_gone(request))
        answered = asyncio.ensure_future(all_of(futures))
        try:
            done, _ = await asyncio.wait(
                {gone, answered},
                timeout=self.limits.answer_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answered in done:
                return answered.result()
            if gone in done:
                raise Gone
            raise Refused(
                504,
                f"The verifier has not answered within {self.limits.answer_seconds:g} s. Send "
                "fewer pictures at a time, or start the server with a longer --answer-seconds.",
                later=5,
            )
        finally:
            gone.cancel()
            answered.cancel()


async def all_of(futures: list[Future[Verdict]]) -> list[Verdict]:
    """Returns the results of futures that other threads set, or raises the first error.

    The loop is woken once, not for each of them.
    """
    loop, ended, counting = asyncio.get_running_loop(), asyncio.Event(), Lock()
    left = len(futures)

    def count(future: Future[Verdict]) -> None:
        nonlocal left
        with counting:
            left -= 1
        failed = not future.cancelled() and future.exception() is not None
        if left == 0 or failed:
            # The loop has ended if nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

    for future in futures:
        future.add_done_callback(count)
    await ended.wait()
    for place, future in enumerate(futures):
        error = future.exception() if future.done() and not future.cancelled() else None
        if isinstance(error, InputError) and len(futures) > 1:
            raise InputError(f"Picture {place} of the request: {error}") from error
        if error is not None:
            raise error
    return [future.result() for future in futures]


def as_refused(error: Exception) -> Refused:
    """Returns how an error is told to a client."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InputError | UnsupportedError):
        return Refused(422, str(error))
    if isinstance(error, ServerError) and error.transient:
        # A verifier that asks another server, which is gone or full.
        return Refused(503, str(error), later=5)
    if isinstance(error, TTSError):
        # Such as a key that the verifier's own endpoint refuses. No client can mend it by waiting.
        _LOG.error("The verifier cannot answer: %s", printable(error))
        return Refused(424, str(error))
    if is_out_of_memory(error):
        return Refused(
            503,
            "The verifier's memory ran out. Try again, with fewer or smaller pictures at a time, "
            "or start the server with a smaller batch_size.",
            later=2,
        )
    _LOG.error("A request failed.", exc_info=error)
    return Refused(500, f"{type(error).__name__}: {error}"[:500])


def refusal(refused: Refused) -> Response:
    """Returns the answer to a request that is refused; its shape is that of OpenAI's errors."""
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    error = {"message": str(refused), "type": kind, "param": None, "code": refused.status}
    headers = {} if refused.later is None else {"retry-after": str(refused.later)}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(dump({"error": error}), refused.status, headers, JSON)


def create_app(
    verifier: Verifier, *, limits: RequestLimits | None = None, token: str | None = None
) -> FastAPI:
    """Returns the application; its lifespan runs the verifier's thread.

    Args:
        verifier: of any kind; nobody else should use it meanwhile.
        limits: of requests.
        token: that requests must have, but those of /health; None = none.
    """
    limits, metrics = limits or RequestLimits(), Metrics()
    dispatcher = Dispatcher(verifier, limits.queue, waited=metrics.verified)
    return app_of(Service(description_of(verifier), dispatcher, metrics, limits, token_of(token)))


def app_of(service: Service) -> FastAPI:
    """Returns the application of a service, with all its endpoints."""
    app = FastAPI(
        title="tts-serve",
        version=version("tts-verifier"),
        description="Scores, reasons and heatmaps of generated pictures. Pickles are never read.",
        lifespan=service.lifespan,
    )
    app.add_exception_handler(StarletteHTTPException, _as_ours)
    _add_endpoints_of_scores(app, service)
    _add_endpoints_of_clients(app, service)
    _add_endpoints_of_operators(app, service)
    return app


def _add_endpoints_of_scores(app: FastAPI, service: Service) -> None:
    @app.get("/v1/verifier", summary="What is served, and the limits of requests.")
    async def verifier(request: Request) -> Response:
        return _without_body(request, service, lambda: service.answers.about(service.limits))

    @app.post(
        "/v1/score",
        summary="Verdicts on pictures, in safetensors or in JSON.",
        openapi_extra=described_body({JSON: ScoreRequest, MEDIA_TYPE: None}),
        responses=RESPONSES,
    )
    async def score(request: Request) -> Response:
        given = media_type_of(request)
        accepted = request.headers.get("accept", "*/*")
        as_json = JSON in accepted or (given == JSON and MEDIA_TYPE not in accepted)

        def write(verdicts: list[Verdict], asked: Asked) -> bytes:
            message, arrays = service.answers.scored(verdicts, asked.maps)
            for what, count in message["missing"].items():
                service.metrics.lacking(what, count)
            return dump(with_texts(message, arrays)) if as_json else pack_message(message, arrays)

        read = asked_in_json if given == JSON else asked_in_arrays
        kinds = (JSON, MEDIA_TYPE, "application/octet-stream")
        return await service.answer(request, read, write, JSON if as_json else MEDIA_TYPE, kinds)


def _add_endpoints_of_clients(app: FastAPI, service: Service) -> None:
    def rewarded(verdicts: list[Verdict], asked: Asked) -> bytes:
        answer = service.answers.rewarded(verdicts, asked.maps)
        for what, count in answer["missing"].items():
            service.metrics.lacking(what, count)
        return dump(answer)

    def completed(verdicts: list[Verdict], asked: Asked) -> bytes:
        message, arrays = service.answers.scored(verdicts, asked.maps)
        found = with_texts(message, arrays)
        result = found.pop("results")[0]
        # A verifier without words answers with its numbers.
        content = result["reply"] or dump(result["scores"]).decode()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": "stop",
        }
        return dump(
            {
                "id": f"chatcmpl-{uuid4().hex}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": service.answers.name,
                "choices": [choice],
                "tts_verifier": found | result,
            }
        )

    @app.post(
        "/compute",
        summary="Rewards, as Flow-Factory's remote reward asks for them.",
        openapi_extra=described_body({JSON: ComputeRequest}),
        responses=RESPONSES,
    )
    async def compute(request: Request) -> Response:
        return await service.answer(request, asked_to_compute, rewarded, JSON)

    @app.post(
        "/v1/chat/completions",
        summary="The verifier's reply, as OpenAI's clients ask for it.",
        openapi_extra=described_body({JSON: ChatRequest}),
        responses=RESPONSES,
    )
    async def chat(request: Request) -> Response:
        return await service.answer(request, asked_in_chat, completed, JSON)

    @app.get("/v1/models", summary="The one verifier, as OpenAI's clients list models.")
    async def models(request: Request) -> Response:
        model = {"id": service.answers.name, "object": "model", "created": 0, "owned_by": "local"}
        return _without_body(request, service, lambda: {"object": "list", "data": [model]})


def _add_endpoints_of_operators(app: FastAPI, service: Service) -> None:
    # What watches over servers may ask for the head alone.
    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the server takes requests. Needs no token.")
    async def health(request: Request) -> Response:
        failure = service.dispatcher.failure
        try:
            check_token(request, service.token)
        except Refused:
            # The error's text may quote a prompt.
            failure = failure.partition(":")[0]
        about = {"status": "ok", "waiting": service.dispatcher.size}
        return Response(
            dump(about | ({"last_failure": failure} if failure else {})), 200, None, JSON
        )

    @app.get("/metrics", summary="Figures in Prometheus's format.")
    async def metrics(request: Request) -> Response:
        try:
            check_token(request, service.token)
        except Refused as error:
            return refusal(error)
        return Response(service.metrics.page(), media_type=service.metrics.content_type)


def _without_body(request: Request, service: Service, answer: Callable[[], Any]) -> Response:
    """Answers a request without a body."""
    try:
        check_token(request, service.token)
    except Refused as error:
        return refusal(error)
    return Response(dump(answer()), media_type=JSON)


async def _as_ours(request: Request, error: Exception) -> Response:
    """Answers paths and methods that do not exist in the shape of all other errors."""
    assert isinstance(error, StarletteHTTPException)
    response = refusal(
        Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    )
    # Such as `Allow`, the methods that there are.
    response.headers.update(error.headers or {})
    return response
