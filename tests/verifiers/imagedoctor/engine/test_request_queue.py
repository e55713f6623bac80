"""Requests that arrive, are cancelled and are answered while the engine runs."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tiny_engine import EOS, requests

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.engine import Engine, RequestQueue, generate
from tts_verifier.verifiers.imagedoctor.engine.engine import CPU_STEPS_PER_CHECK
from tts_verifier.verifiers.imagedoctor.engine.next_token import greedy
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import (
    GeneratedReply,
    GenerationLimits,
    GenerationRequest,
    Sampling,
)

SECONDS = 60
"""No test waits longer for a thread that hangs."""


@contextmanager
def serving(*engines: Engine) -> Iterator[RequestQueue]:
    """Serves in a thread; at the end no request is left, unless an engine has failed."""
    queue = RequestQueue(*engines)
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            queue.serve()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield queue
    finally:
        queue.close()
        thread.join(SECONDS)
    assert not thread.is_alive()


class Gate:
    """A choice that lets the steps of an engine through one by one."""

    def __init__(self) -> None:
        self.step, self.reached = threading.Semaphore(0), threading.Semaphore(0)
        self.rows: list[int] = []

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(scores))
        self.reached.release()
        assert self.step.acquire(timeout=SECONDS)
        return greedy(scores)


def test_threads_get_the_replies_that_one_call_gives(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), sampling=Sampling(1.2))
    prompts = [
        dataclasses.replace(request, seed=seed) for seed in range(4) for request in requests(model)
    ]
    expected = [reply.ids for reply in generate(model, prompts, limits)]
    with serving(Engine(model, limits, sequences=6)) as queue:
        futures: dict[int, Future[GeneratedReply]] = {}

        def client(first: int) -> None:
            for i in range(first, len(prompts), 3):
                futures[i] = queue.submit(prompts[i])
                if i % 2:
                    futures[i].result(SECONDS)

        clients = [threading.Thread(target=client, args=(first,)) for first in range(3)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(SECONDS)
        assert [futures[i].result(SECONDS).ids for i in range(len(prompts))] == expected


def test_a_request_joins_those_that_are_running(model: ImageDoctorModel) -> None:
    gate, limits = Gate(), GenerationLimits(40, ())
    engine = Engine(model, limits, sequences=8, choose=gate)
    expected = [reply.ids for reply in generate(model, requests(model)[:2], limits)]
    with serving(engine) as queue:
        first = queue.submit(requests(model)[0])
        assert gate.reached.acquire(timeout=SECONDS)
        second = queue.submit(requests(model)[1])
        gate.step.release(1000)
        assert second.result(SECONDS).ids == expected[1]
        assert first.result(SECONDS).ids == expected[0]
    # One after the other would take 80 steps.
    assert len(gate.rows) <= 40 + 16


def test_replies_are_handed_out_as_they_end(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(400, (EOS,))
    replies = generate(model, requests(model), dataclasses.replace(limits, max_new_tokens=24))
    order = sorted(range(5), key=lambda i: len(replies[i].ids) + 1000 * (not replies[i].ended))
    short, long = order[0], order[-1]
    with serving(Engine(model, limits, sequences=4)) as queue:
        futures = {i: queue.submit(requests(model)[i]) for i in (long, short)}
        done: list[int] = []
        for i, future in futures.items():
            future.add_done_callback(lambda _, i=i: done.append(i))
        wait(futures.values(), SECONDS)
    assert done[0] == short


def test_a_cancelled_request_frees_its_sequence(model: ImageDoctorModel) -> None:
    gate, limits = Gate(), GenerationLimits(40, ())
    engine = Engine(model, limits, sequences=1, choose=gate)
    expected = generate(model, requests(model)[1:2], limits)[0].ids
    with serving(engine) as queue:
        running = queue.submit(requests(model)[0])
        assert gate.reached.acquire(timeout=SECONDS)
        waiting, wanted = queue.submit(requests(model)[2]), queue.submit(requests(model)[1])
        assert running.cancel()
        assert waiting.cancel()
        gate.step.release(1000)
        assert wanted.result(SECONDS).ids == expected
        assert not wanted.cancel()
    with pytest.raises(CancelledError):
        running.result(0)
    # The rest of the steps before the first check, and those of the one reply that was wanted.
    assert len(gate.rows) == CPU_STEPS_PER_CHECK + 40


def test_cancelling_works_in_every_place_and_order(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05)
    expected = [reply.ids for reply in generate(model, requests(model), limits)]
    with serving(Engine(model, limits, sequences=3)) as queue:
        for drop in range(5):
            futures = [queue.submit(request) for request in requests(model)]
            futures[drop].cancel()
            for i, future in enumerate(futures):
                if not future.cancelled():
                    assert future.result(SECONDS).ids == expected[i]


def test_an_idle_engine_waits_without_a_step_or_a_question(model: ImageDoctorModel) -> None:
    questions = threading.Semaphore(0)

    class Watched(RequestQueue):
        asked = 0

        def wait(self) -> None:
            Watched.asked += 1
            questions.release()
            super().wait()

    queue = Watched(Engine(model, GenerationLimits(4, ()), sequences=2))
    thread = threading.Thread(target=queue.serve)
    thread.start()
    assert questions.acquire(timeout=SECONDS)
    assert not questions.acquire(timeout=0.2)
    assert len(queue.submit(requests(model)[0]).result(SECONDS).ids) == 4
    queue.close()
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_an_engine_waits_for_what_is_being_prepared_and_no_longer(model: ImageDoctorModel) -> None:
    queue = RequestQueue(Engine(model, GenerationLimits(4, ()), sequences=2))
    asking, done = threading.Event(), threading.Event()

    def waits() -> None:
        asking.set()
        queue.wait_for_prepared()
        done.set()

    queue.begin_preparing()
    thread = threading.Thread(target=waits)
    thread.start()
    assert asking.wait(SECONDS)
    queue.end_preparing()
    assert done.wait(SECONDS)
    thread.join(SECONDS)
    queue.begin_preparing()
    # It takes too long, so those that run go on, in every later step at once.
    queue.wait_for_prepared()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading.Condition, "wait", None)
        queue.wait_for_prepared()


def test_a_plain_source_may_have_nothing_yet(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,))
    first, second = requests(model)[:2]
    source = [None, first, None, None, second, None]
    engine = Engine(model, limits, sequences=2)
    replies = dict(engine.replies(iter(source)))
    assert [replies[i].ids for i in range(2)] == [
        reply.ids for reply in generate(model, [first, second], limits)
    ]


def test_an_engine_that_fails_tells_everybody_and_closes_the_queue(
    model: ImageDoctorModel,
) -> None:
    gate = threading.Event()

    def fails(scores: torch.Tensor) -> torch.Tensor:
        assert gate.wait(SECONDS)
        raise RuntimeError("the device is gone")

    engine = Engine(model, GenerationLimits(4, ()), sequences=1, choose=fails)
    with serving(engine) as queue:
        futures = [queue.submit(request) for request in requests(model)[:3]]
        futures[1].cancel()
        gate.set()
        for future in (futures[0], futures[2]):
            with pytest.raises(RuntimeError, match="the device is gone"):
                future.result(SECONDS)
    with pytest.raises(InputError, match=r"The queue of requests is closed. Make another one\."):
        queue.submit(requests(model)[0])


def test_an_interrupt_reaches_others_as_an_error_that_ends_no_thread(
    model: ImageDoctorModel,
) -> None:
    def interrupted(scores: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    queue = RequestQueue(Engine(model, GenerationLimits(4, ()), choose=interrupted))
    future = queue.submit(requests(model)[0])
    with pytest.raises(KeyboardInterrupt):
        queue.serve()
    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        future.result(0)


def test_a_future_can_be_awaited_and_cancelled_there(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,))
    expected = generate(model, requests(model)[:1], limits)[0].ids
    with serving(Engine(model, limits, sequences=2)) as queue:

        async def ask() -> list[int]:
            unwanted = asyncio.wrap_future(queue.submit(requests(model)[1]))
            unwanted.cancel()
            return (await asyncio.wrap_future(queue.submit(requests(model)[0]))).ids

        assert asyncio.run(ask()) == expected


def test_engines_of_several_devices_share_one_queue(model: ImageDoctorModel) -> None:
    limits = GenerationLimits(24, (EOS,), 1.05)
    expected = [reply.ids for reply in generate(model, requests(model), limits)]
    gates = [Gate(), Gate()]
    models = (model, copy.deepcopy(model))
    engines = [
        Engine(each, limits, sequences=8, choose=gate)
        for each, gate in zip(models, gates, strict=True)
    ]
    with serving(*engines) as queue:
        futures = [queue.submit(request) for request in requests(model)]
        # The first takes no more than its part, though it has room for all.
        for gate in gates:
            assert gate.reached.acquire(timeout=SECONDS)
        later = [queue.submit(request) for request in requests(model)]
        assert later[1].cancel()
        for gate in gates:
            gate.step.release(100_000)
        assert [future.result(SECONDS).ids for future in futures] == expected
        for i in (0, 2, 3, 4):
            assert later[i].result(SECONDS).ids == expected[i]


def test_an_engine_of_several_that_fails_stops_the_others_and_tells_everybody(
    model: ImageDoctorModel,
) -> None:
    limits, good = GenerationLimits(400, ()), Gate()

    def fails(scores: torch.Tensor) -> torch.Tensor:
        assert good.reached.acquire(timeout=SECONDS)
        raise RuntimeError("the device is gone")

    engines = [
        Engine(model, limits, sequences=2, choose=good),
        Engine(copy.deepcopy(model), limits, sequences=2, choose=fails),
    ]
    good.step.release(16)
    with serving(*engines) as queue:
        futures = [queue.submit(request) for request in requests(model)]
        until = time.monotonic() + SECONDS
        while not queue.stopped and time.monotonic() < until:
            time.sleep(0.001)
        good.step.release(100_000)
        for future in futures:
            with pytest.raises(RuntimeError, match="the device is gone"):
                future.result(SECONDS)
    assert len(good.rows) < 400
    with pytest.raises(InputError, match="The queue of requests is closed"):
        queue.submit(requests(model)[0])


def changed(model: ImageDoctorModel, **values: Any) -> GenerationRequest:
    return dataclasses.replace(requests(model)[0], **values)


def test_a_wrong_request_fails_alone(model: ImageDoctorModel) -> None:
    good = requests(model)[0]
    image = model.config.image_token_id
    levels, table = np.zeros((64, 588), np.uint8), np.zeros((3, 256), np.float32)
    wrong = [
        (changed(model, grid=(4, 4)), r"grid of 4 x 4 must be float32 \(16, 1176\), got float32"),
        (changed(model, patches=levels), r"float32 \(64, 1176\), got uint8 \(64, 588\)"),
        (changed(model, level_values=table), r"uint8 \(64, 588\) beside level_values, got"),
        (
            changed(model, patches=levels, level_values=table[:, :9]),
            r"level_values must be \(3, 256\), got \(3, 9\)",
        ),
        (changed(model, grid=(3, 8)), "whole cells of 2 patches"),
        (changed(model, grid=(0, 8)), "whole cells of 2 patches"),
        (changed(model, ids=[1, 2, 3]), "16 merged tokens, got 0"),
        (changed(model, ids=[*good.ids, image]), "16 merged tokens, got 17"),
        (changed(model, ids=[*good.ids, 10**6]), "Token ids must be from 0 to"),
        (changed(model, ids=[*good.ids, -1]), "Token ids must be from 0 to"),
        (changed(model, ids=[*good.ids, *[1] * 200_000]), "fewer than .* tokens, got"),
    ]
    limits = GenerationLimits(8, ())
    with serving(Engine(model, limits, sequences=2)) as queue:
        future = queue.submit(good)
        for request, message in wrong:
            with pytest.raises(InputError, match=message):
                queue.submit(request)
        assert future.result(SECONDS).ids == generate(model, [good], limits)[0].ids
