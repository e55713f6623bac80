"""Verdicts of pairs that arrive while earlier ones are being answered.

A `RequestQueue` feeds the engines as their sequences become free. Replies go on to a thread that
decodes their maps: it takes all that have ended since it looked last, so groups are full when there
is much to do, and nothing waits when there is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import as_exception
from tts_verifier.types import Detail, Verdict
from tts_verifier.verifiers.imagedoctor.engine.decode_step import CAPTURES
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapQueue
from tts_verifier.verifiers.imagedoctor.engine.request_queue import RequestQueue
from tts_verifier.verifiers.imagedoctor.pairs import Answer, PairProcessor, PreparedPair
from tts_verifier.verifiers.imagedoctor.replicas import Replica
from tts_verifier.verifiers.imagedoctor.requests import GeneratedReply, GenerationRequest
from tts_verifier.verifiers.imagedoctor.text.answer_template import AnswerTemplate
from tts_verifier.verifiers.imagedoctor.text.verdict import ReplyTokens
from tts_verifier.verifiers.imagedoctor.threads import on_device

_MOST_TOGETHER: Final = 64
"""Replies whose maps are decoded before their verdicts are given out."""
_TEMPLATE: Final = AnswerTemplate()
"""An empty one. Answers from a template are not served live, see `PairProcessor.live_details`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A pair that an engine has, or will have."""

    request: GenerationRequest
    """What the engine takes."""
    maps: bool
    """Whether maps are decoded."""
    result: Callable[[Answer], Any]
    """Makes of its reply and maps what is waited for."""
    waiting: Future[Any]
    """Waits for it."""


class _Ended(NamedTuple):
    """A pair whose maps are not decoded yet."""

    asked: _Asked
    """The pair."""
    reply: GeneratedReply
    """With its states on the device."""


class LiveVerdicts:
    """Verifies pairs as they come; made by `ImageDoctor.live`. Safe to share between threads.

    Args:
        replicas: their engines and map decoders belong to it until it is left.
        pairs: prepares pairs for these engines.
    """

    def __init__(self, replicas: Sequence[Replica], pairs: PairProcessor) -> None:
        self._replicas, self._pairs = replicas, pairs
        self._requests = RequestQueue(*(replica.engine for replica in replicas))
        self._ended: dict[torch.device, SimpleQueue[_Ended | None]] = {
            replica.device: SimpleQueue() for replica in replicas
        }
        self._serving = Thread(target=self._serve, name="engine")
        self._decoding = [
            Thread(target=self._decode, args=(replica,), name="maps") for replica in replicas
        ]

    @property
    def failed(self) -> bool:
        """Whether an engine has failed: all open verdicts got its error, and no more are taken."""
        return self._requests.stopped

    def submit(
        self,
        image: Image.Image,
        prompt: str,
        detail: Detail,
        verdict: Future[Verdict] | None = None,
    ) -> Future[Verdict]:
        """Adds a pair, and prepares it in this thread.

        Args:
            image: RGB.
            prompt: what it should show.
            detail: one of the verifier's `live_details`.
            verdict: gets the verdict; None = a new one.

        Returns:
            The future verdict; to cancel it frees the pair's place in the engine.

        Raises:
            InputError: the prompt cannot be used, or the block was left.
        """
        verdict = Future() if verdict is None else verdict
        self._requests.begin_preparing()
        try:
            pair = self._pairs.prepare(image, prompt, detail)
            self._ask(pair, detail, partial(self._pairs.verdict, image.size, detail), verdict)
        finally:
            self._requests.end_preparing()
        return verdict

    def submit_prepared(self, pair: PreparedPair, detail: Detail, answer: Future[Answer]) -> None:
        """Adds a pair that another process has prepared, which also makes its verdict.

        Args:
            pair: of a processor with the same settings.
            detail: one of the verifier's `live_details`.
            answer: gets the answer; to cancel it frees the pair's place in the engine.

        Raises:
            InputError: the pair does not fit the model, or the block was left.
        """
        self._ask(pair, detail, _unchanged, answer)

    def _ask(
        self,
        pair: PreparedPair,
        detail: Detail,
        result: Callable[[Answer], Any],
        waiting: Future[Any],
    ) -> None:
        request = self._pairs.request(pair)
        asked = _Asked(request, self._pairs.has_maps(detail), result, waiting)
        self._requests.add(request, waiting, partial(self._pass_on, asked))

    def __enter__(self) -> LiveVerdicts:
        for thread in (self._serving, *self._decoding):
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.close()
        self._serving.join()
        for replica in self._replicas:
            self._ended[replica.device].put(None)
        for thread in self._decoding:
            thread.join()
        if self.failed:
            # The buffers may be in any state.
            for replica in self._replicas:
                replica.forget()

    def _serve(self) -> None:
        # Those who wait have the error.
        with suppress(Exception):
            self._requests.serve()

    def _pass_on(self, asked: _Asked, reply: GeneratedReply) -> None:
        """Gives an ended reply to the thread that decodes maps; the engine's thread calls it."""
        self._ended[reply.visual.device].put(_Ended(asked, reply))

    def _decode(self, replica: Replica) -> None:
        """Decodes maps and gives verdicts out, until the queue ends."""
        waiting, more = self._ended[replica.device], True
        maps_queue = MapQueue(replica.map_decoder)
        while more:
            group = [waiting.get()]
            while group[-1] and len(group) < _MOST_TOGETHER and not waiting.empty():
                group.append(waiting.get())
            more = group[-1] is not None
            # From here on they cannot be cancelled.
            ended = [
                one for one in group if one and one.asked.waiting.set_running_or_notify_cancel()
            ]
            try:
                # Not while the engine captures steps on the same device.
                with on_device(replica.device), CAPTURES:
                    for number, one in enumerate(ended):
                        if one.asked.maps:
                            maps_queue.add(number, one.reply, one.asked.request.grid)
                    maps = maps_queue.finish()
            except BaseException as error:
                # It may hold a part of them.
                maps_queue = MapQueue(replica.map_decoder)
                for one in ended:
                    one.asked.waiting.set_exception(as_exception(error))
                continue
            for number, one in enumerate(ended):
                _give_result(one, maps.get(number, {}))


def _unchanged(answer: Answer) -> Answer:
    return answer


def _give_result(ended: _Ended, maps: Mapping[str, NDArray[np.float32]]) -> None:
    """Gives out what a pair's client waits for."""
    waiting = ended.asked.waiting
    try:
        result = ended.asked.result((ReplyTokens.of(ended.reply, _TEMPLATE), maps))
    # Panics of libraries in Rust are no Exceptions.
    except BaseException as error:
        waiting.set_exception(as_exception(error))
    else:
        waiting.set_result(result)
