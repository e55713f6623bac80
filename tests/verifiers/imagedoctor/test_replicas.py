"""Copies of a model share the images of a call: the same verdicts, in order, whoever makes them.

The copies are on the CPU here; `test_gpu_several.py` has those on GPUs.
"""

from __future__ import annotations

import copy
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_verdicts import IMAGES, PROMPTS, assert_same, stress
from threads import at_once
from tiny_imagedoctor import example, talkative

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.interfaces import Verifier
from tts_verifier.types import Verdict
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_checkpoint, load_copies
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.quantise import quantise_model
from tts_verifier.verifiers.imagedoctor.replicas import (
    Replica,
    Share,
    SharedRequests,
    answer_together,
)
from tts_verifier.verifiers.imagedoctor.text.answer_template import AnswerTemplate
from tts_verifier.verifiers.imagedoctor.threads import run_together

ALL_OPTIONS = {"heatmaps": True, "answer_template": True, "fit": "pad"}
SECONDS = 60
"""No test waits longer for a thread that hangs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    example().make(made)
    return made


def load(folder: Path, **options: Any) -> ImageDoctor:
    """Random weights whose replies, each different, hold heatmap tokens."""
    return talkative(folder, batch_size=3, max_new_tokens=24, **options)


def spread(one: ImageDoctor, devices: int, **options: Any) -> ImageDoctor:
    """The same verifier with as many copies of its model, the first of which it shares."""
    copies = [copy.deepcopy(one.checkpoint.model) for _ in range(devices - 1)]
    return ImageDoctor(one.checkpoint, copies=copies, batch_size=3, **options)


@pytest.fixture(scope="module")
def one(folder: Path) -> ImageDoctor:
    return load(folder)


@pytest.fixture(scope="module")
def two(one: ImageDoctor) -> ImageDoctor:
    return spread(one, 2)


@pytest.fixture(scope="module")
def undisturbed(two: ImageDoctor) -> list[Verdict]:
    return two.verify(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ({}, "diagnose"),
        (ALL_OPTIONS, "score"),
        pytest.param({}, "score", marks=pytest.mark.slow),
        pytest.param(ALL_OPTIONS, "diagnose", marks=pytest.mark.slow),
    ],
)
def test_verdicts_are_those_of_one_device_in_the_order_of_the_images(
    one: ImageDoctor, options: Any, detail: Any
) -> None:
    alone, three = (spread(one, devices, **options) for devices in (1, 3))
    images, prompts = IMAGES * 3, [f"{prompt} {i}" for i, prompt in enumerate(PROMPTS * 3)]
    found = three.verify(images, prompts, detail=detail)
    assert_same(found, alone.verify(images, prompts, detail=detail))
    assert len({verdict.text for verdict in found}) > 2
    if three.pair_processor.has_maps(detail):
        assert sum(len(verdict.heatmaps) for verdict in found) > 6


def test_every_device_takes_part_and_a_single_image_needs_one(
    two: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[Engine, str]] = []
    real = Engine._prefill

    def prefill(engine: Engine, *arguments: Any) -> Any:
        used.append((engine, threading.current_thread().name))
        return real(engine, *arguments)

    monkeypatch.setattr(Engine, "_prefill", prefill)
    two.verify(IMAGES, PROMPTS)
    assert {engine for engine, _ in used} == {replica.engine for replica in two.replicas}
    assert len({name for _, name in used}) == 2
    used.clear()
    two.verify(IMAGES[:1], PROMPTS[:1])
    assert used == [(two.engine, threading.current_thread().name)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No image has a usable score")
def test_rankings_and_many_threads_get_what_one_device_gives(
    one: ImageDoctor, two: ImageDoctor
) -> None:
    for ours, theirs in zip(two.rerank(IMAGES, "x"), one.rerank(IMAGES, "x"), strict=True):
        assert ours.index == theirs.index
        assert_same([ours.verdict], [theirs.verdict])
    stress(two, threads=6, count=2)


def test_copies_in_fp8_agree_with_one(folder: Path) -> None:
    one = load(folder)
    both = spread(one, 2)
    for replica in both.replicas:
        quantise_model(replica.model)
    alone = one.verify(IMAGES, PROMPTS)
    assert both.replicas[1].model.model.layers[0].mlp.up_proj.weight.itemsize == 1
    assert_same(both.verify(IMAGES, PROMPTS), alone)


def test_a_log_does_not_depend_on_the_number_of_devices(one: ImageDoctor, two: ImageDoctor) -> None:
    assert spread(one, 1).settings == two.settings
    cpu = torch.device("cpu")
    assert (one.device, one.devices) == (cpu, (cpu,))
    assert (two.device, two.devices) == (cpu, (cpu, cpu))


def test_copies_are_not_moved(one: ImageDoctor, two: ImageDoctor) -> None:
    assert one.nbytes is not None
    assert two.nbytes is None
    with pytest.raises(
        UnsupportedError, match=r"on one device can be moved; .* on each of cpu, cpu"
    ):
        two.to("cpu")


def test_it_can_be_copied_and_pickled(two: ImageDoctor) -> None:
    alone = two.verify(IMAGES[:4], PROMPTS[:4])
    two._forget()
    for made in (copy.deepcopy(two), pickle.loads(pickle.dumps(two))):
        assert len(made.replicas) == 2
        assert made.replicas[0].model is made.checkpoint.model
        assert_same(made.verify(IMAGES[:4], PROMPTS[:4]), alone)


def test_the_rows_of_a_device_follow_its_own_memory(
    two: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {id(replica.model): rows for replica, rows in zip(two.replicas, (8, 2), strict=True)}
    engine = "tts_verifier.verifiers.imagedoctor.engine.engine"
    monkeypatch.setattr(f"{engine}.sequences_that_fit", lambda model, *_: free[id(model)])
    automatic = ImageDoctor(two.checkpoint, copies=[two.replicas[1].model])
    assert [replica.engine.sequences for replica in automatic.replicas] == [8, 2]
    assert_same(automatic.verify(IMAGES * 3, PROMPTS * 3), two.verify(IMAGES * 3, PROMPTS * 3))


def failing(two: ImageDoctor, place: int, error: BaseException, replies: list[int]) -> Any:
    """Engines of which one raises after its first reply; notes all replies."""
    real, bad = Engine.replies, two.replicas[place].engine

    def failing_replies(engine: Engine, requests: Any, *, expected: int) -> Iterator[Any]:
        for number, reply in real(engine, requests, expected=expected):
            replies.append(number)
            yield number, reply
            if engine is bad:
                raise error

    return failing_replies


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_on_one_device_stops_all_says_where_and_costs_no_later_call(
    two: ImageDoctor, undisturbed: list[Verdict], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    error, replies, replicas = torch.OutOfMemoryError("no memory left"), [], two.replicas
    with monkeypatch.context() as patched:
        numbered = property(lambda self: torch.device("cpu", replicas.index(self)))
        patched.setattr(Replica, "device", numbered)
        patched.setattr(Engine, "replies", failing(two, place, error, replies))
        with pytest.raises(torch.OutOfMemoryError, match="no memory left") as caught:
            two.verify(IMAGES * 20, PROMPTS * 20)
    assert caught.value.__notes__ == [
        f"This happened on cpu:{place}. The verifier's other devices, cpu:{1 - place}, were "
        "stopped, and their replies are lost."
    ]
    assert len(replies) < 100
    assert all(replica.engine.decode_step is None for replica in replicas)
    assert_same(two.verify(IMAGES, PROMPTS), undisturbed)


def test_an_error_of_one_device_reaches_all_threads_whose_calls_it_ends(
    two: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "replies", failing(two, 1, RuntimeError("broken"), replies))
        found = at_once([lambda: two.verify(IMAGES, PROMPTS)] * 4)
    assert all(isinstance(error, RuntimeError) and error.__notes__ for error in found)


def test_ctrl_c_stops_all_devices_and_the_next_call_is_right(
    two: ImageDoctor, undisturbed: list[Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[int] = []
    before = threading.active_count()
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "replies", failing(two, 0, KeyboardInterrupt(), replies))
        with pytest.raises(KeyboardInterrupt):
            two.verify(IMAGES * 20, PROMPTS * 20)
    assert len(replies) < 100
    wait_for(lambda: threading.active_count() == before)
    assert threading.active_count() == before
    assert_same(two.verify(IMAGES, PROMPTS), undisturbed)


def test_an_image_that_cannot_be_prepared_is_an_error_of_no_device(
    two: ImageDoctor, undisturbed: list[Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Processor.levels

    def levels(processor: Processor, image: Any, **options: Any) -> Any:
        if image.size == IMAGES[3].size:
            raise ValueError("no levels")
        return real(processor, image, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Processor, "levels", levels)
        with pytest.raises(ValueError, match="no levels") as caught:
            two.verify(IMAGES * 3, PROMPTS * 3)
    assert not hasattr(caught.value, "__notes__")
    assert_same(two.verify(IMAGES, PROMPTS), undisturbed)


def test_ctrl_c_while_others_work_waits_until_they_have_stopped() -> None:
    stopped, started, ended = threading.Event(), threading.Barrier(3), []
    main = threading.main_thread().ident
    assert main == threading.get_ident()

    def work() -> None:
        started.wait(SECONDS)
        ended.append(stopped.wait(SECONDS))

    def interrupts() -> None:
        started.wait(SECONDS)
        signal.pthread_kill(main, signal.SIGINT)
        ended.append(stopped.wait(SECONDS))

    # A shell's background job ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_together([lambda: started.wait(SECONDS), work, interrupts], stopped.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [True, True]


class Desk:
    """Takes the place of a replica: answers a request with ten times its value."""

    def __init__(self, rows: int = 1, seed: int = 0, wait: Callable[[], Any] = lambda: None):
        self.device, self.rows, self.wait = torch.device("cpu"), rows, wait
        self.random, self.taken, self.answers = random.Random(seed), 0, 0

    def answer(self, share: Share, *_: Any, expected: int) -> dict[int, Any]:
        source, running, found = iter(share), {}, {}
        while True:
            while len(running) < self.rows and (request := next(source, "end")) is not None:
                if request == "end":
                    break
                running[self.taken] = request
                self.taken += 1
            if not running:
                return found
            self.wait()
            number = self.random.choice(list(running))
            found[share.answered(number)] = 10 * running.pop(number)
            self.answers += 1


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)


@given(
    count=st.integers(1, 60),
    rows=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_answers_are_in_order_however_devices_share_the_requests(
    count: int, rows: list[int], seed: int
) -> None:
    desks: list[Any] = [Desk(size, seed + i) for i, size in enumerate(rows)]
    found = answer_together(desks, iter(range(count)), count, AnswerTemplate(), None)
    assert found == [10 * i for i in range(count)]
    assert sum(desk.answers for desk in desks) == count


def test_a_device_that_is_slow_gets_fewer_requests() -> None:
    slow = Desk(rows=2, wait=lambda: wait_for(lambda: fast.answers == 98))
    fast = Desk(rows=2, wait=lambda: wait_for(lambda: slow.taken == 2))
    desks: Any = [fast, slow]
    answer_together(desks, iter(range(100)), 100, AnswerTemplate(), None)
    assert (fast.answers, slow.answers) == (98, 2)


@given(count=st.integers(1, 40), shares=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_no_engine_takes_what_another_would_answer_sooner_and_none_is_left_idle(
    count: int, shares: int, seed: int
) -> None:
    chance = random.Random(seed)
    queue = SharedRequests(iter(range(count)), count, shares)  # type: ignore[arg-type]
    sources = [iter(share) for share in queue.shares]
    running: list[list[int]] = [[] for _ in range(shares)]
    taken: list[int] = []
    open_ones = count
    while open_ones:
        at = chance.randrange(shares)
        if running[at] and chance.random() < 0.5:
            number = chance.choice(running[at])
            running[at].remove(number)
            assert queue.shares[at].answered(number) == queue.shares[at].places[number]
            open_ones -= 1
            continue
        part = -(-open_ones // shares)
        request: Any = next(sources[at], "end")
        if request == "end":
            assert len(taken) == count
        elif request is None:
            assert len(running[at]) >= part > 0
        else:
            assert len(running[at]) < part
            running[at].append(len(queue.shares[at].places) - 1)
            taken.append(request)
    assert taken == list(range(count))


GPUS = ["cuda:0,1", "cuda:all", "cuda:0,cuda:1", ["cuda:0", "cuda:1"], [0, 1]]


@pytest.mark.parametrize("device", GPUS, ids=str)
def test_each_gpu_gets_a_copy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: Any, two_gpus: None
) -> None:
    places: list[torch.device] = []

    def checkpoint(folder: Path, *, device: torch.device, **options: Any) -> Any:
        places.append(device)
        return load_checkpoint(folder, **options | {"device": "cpu"})

    def copies(folder: Path, model: Any, devices: Sequence[torch.device]) -> Any:
        places.extend(devices)
        return load_copies(folder, model, [torch.device("cpu")] * len(devices))

    module = "tts_verifier.verifiers.imagedoctor.verifier"
    monkeypatch.setattr(f"{module}.load_checkpoint", checkpoint)
    monkeypatch.setattr(f"{module}.load_copies", copies)
    loaded = ImageDoctor.from_pretrained(str(folder), device=device, max_new_tokens=8)
    assert places == [torch.device("cuda:0"), torch.device("cuda:1")]
    first, second = (replica.model.state_dict() for replica in loaded.replicas)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(p.requires_grad for p in loaded.replicas[1].model.parameters())
    assert loaded.home is None


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_what_several_gpus_cannot_do_is_refused_before_anything_is_searched_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capability = {torch.device("cuda:0"): (9, 0), torch.device("cuda:1"): (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability.get)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the card of {device}")
    with pytest.raises(InputError, match=r"needs a GPU of .*; the card of cuda:1 has 8\.0"):
        Verifier.from_pretrained("no-such/verifier", device="cuda:0,1", precision="fp8")
    with pytest.raises(InputError, match=r"got cuda:0, cuda:1 and 'auto'. Give one of the two"):
        Verifier.from_pretrained("no-such/verifier", device="cuda:0,1", device_map="auto")
    with pytest.raises(InputError, match=r"devices must be GPUs.*got cuda:0, cpu"):
        Verifier.from_pretrained("no-such/verifier", device="cuda:0,cpu")
