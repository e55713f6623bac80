"""Calls of several threads wait for each other, join, and keep what is theirs apart."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from threads import at_once

from tts_verifier.errors import UnsupportedError
from tts_verifier.verifiers.imagedoctor.shared_calls import SharedCalls, calls_of


class Desk:
    """A queue whose first pass lasts until `count` further calls wait."""

    def __init__(self) -> None:
        self.calls = SharedCalls()
        self.passes: list[list[Any]] = []
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def first(self, *, then: Callable[[], None] = lambda: None) -> threading.Thread:
        """Starts the first pass, which waits inside until `go_on`."""

        def work(items: Sequence[Any]) -> Sequence[Any]:
            self.inside.set()
            assert self.go_on.wait(60)
            then()
            return items

        thread = threading.Thread(target=lambda: self.calls.run("first", [0], work), daemon=True)
        thread.start()
        assert self.inside.wait(60)
        return thread

    def work(self, items: Sequence[Any]) -> Sequence[Any]:
        self.passes.append(sorted(items))
        return [item * 10 for item in items]

    def when_waiting(self, count: int) -> None:
        """Lets the first pass end once that many calls wait."""

        def watch() -> None:
            while len(self.calls._waiting) < count:
                time.sleep(0.001)
            self.go_on.set()

        threading.Thread(target=watch, daemon=True).start()


def test_calls_that_wait_together_run_in_one_pass_and_get_their_own_results() -> None:
    desk = Desk()
    desk.first()
    desk.when_waiting(4)
    results = at_once(
        [lambda n=n: desk.calls.run("a", [n, n + 100], desk.work) for n in range(1, 5)]
    )
    assert results == [[n * 10, (n + 100) * 10] for n in range(1, 5)]
    assert desk.passes == [[1, 2, 3, 4, 101, 102, 103, 104]]


def test_calls_of_different_keys_do_not_join() -> None:
    desk = Desk()
    desk.first()
    desk.when_waiting(3)
    at_once(
        [
            lambda k=k, n=n: desk.calls.run(k, [n], desk.work)
            for k, n in (("a", 1), ("b", 2), ("a", 3))
        ]
    )
    assert sorted(desk.passes) == [[1, 3], [2]]


def test_an_error_of_a_pass_reaches_all_calls_in_it_and_no_other() -> None:
    desk = Desk()
    desk.first()
    desk.when_waiting(3)

    def fails(items: Sequence[Any]) -> Sequence[Any]:
        raise RuntimeError("out of luck")

    works = [lambda: desk.calls.run("bad", [1], fails)] * 2
    results = at_once([*works, lambda: desk.calls.run("good", [1], desk.work)])
    assert [str(error) for error in results[:2]] == ["out of luck"] * 2
    assert results[0] is not results[1]
    assert results[2] == [10]


def test_an_error_that_cannot_be_copied_still_reaches_all() -> None:
    class Odd(Exception):
        def __init__(self, *, why: str) -> None:
            super().__init__(why)

    desk = Desk()
    desk.first()
    desk.when_waiting(2)

    def fails(items: Sequence[Any]) -> Sequence[Any]:
        raise Odd(why="odd")

    results = at_once([lambda: desk.calls.run("bad", [1], fails)] * 2)
    assert [type(error) for error in results] == [Odd, Odd]


def test_ctrl_c_of_the_leader_is_its_own_and_the_next_leader_runs_the_others() -> None:
    desk = Desk()
    desk.first()
    desk.when_waiting(3)
    interrupts = [KeyboardInterrupt()]

    def work(items: Sequence[Any]) -> Sequence[Any]:
        if interrupts:
            raise interrupts.pop()
        return desk.work(items)

    results = at_once([lambda n=n: desk.calls.run("a", [n], work) for n in (1, 2, 3)])
    assert sum(isinstance(result, KeyboardInterrupt) for result in results) == 1
    left = [n for n, result in zip((1, 2, 3), results, strict=True) if isinstance(result, list)]
    assert [r for r in results if isinstance(r, list)] == [[10 * n] for n in left]
    assert desk.passes == [left]


def test_a_call_within_a_call_is_refused_at_once() -> None:
    calls = SharedCalls()

    def work(items: Sequence[Any]) -> Sequence[Any]:
        return calls.run("b", items, lambda items: items)

    with pytest.raises(UnsupportedError, match="from within its own call, in the same thread"):
        calls.run("a", [1], work)
    with calls.alone(), pytest.raises(UnsupportedError, match="once the outer call has returned"):
        calls.run("a", [1], work)
    assert calls.run("a", [1], lambda items: items) == [1]


def test_who_works_alone_waits_for_calls_and_keeps_them_waiting() -> None:
    desk, log = Desk(), []
    desk.first(then=lambda: log.append("pass"))
    desk.when_waiting(1)
    with desk.calls.alone():
        log.append("alone")
        later = threading.Thread(
            target=lambda: desk.calls.run("a", [1], lambda items: [log.append("later")])
        )
        later.start()
        while not any(call.key == "a" for call in desk.calls._waiting):
            time.sleep(0.001)
        log.append("still alone")
    later.join(60)
    assert log == ["pass", "alone", "still alone", "later"]


def test_a_models_queue_is_one_for_all_and_keeps_no_model_alive() -> None:
    class Model:
        pass

    model = Model()
    found = at_once([lambda model=model: calls_of(model) for _ in range(8)])
    assert len({id(calls) for calls in found}) == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
