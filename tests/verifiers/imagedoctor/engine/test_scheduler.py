"""The scheduler alone: who enters which sequence, when, and how many sequences are stepped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tts_verifier.verifiers.imagedoctor.engine.scheduler import PREFILL_PATCHES, Scheduler
from tts_verifier.verifiers.imagedoctor.requests import GenerationRequest


def request(tokens: int = 5) -> GenerationRequest:
    return GenerationRequest([0] * tokens, np.zeros((4, 3), np.float32), (2, 2))


def queue(count: int) -> Iterator[GenerationRequest]:
    return (request(10 + i) for i in range(count))


def admit(scheduler: Scheduler) -> list[dict[int, int]]:
    """Admits requests; returns each batch as sequence -> number."""
    return [{s: r.number for s, r in batch.items()} for batch in scheduler.prefill_batches()]


def test_it_needs_no_deep_learning_library() -> None:
    module = "tts_verifier.verifiers.imagedoctor.engine.scheduler"
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_requests_enter_free_sequences_in_order() -> None:
    scheduler = Scheduler(queue(5), 3)
    assert admit(scheduler) == [{0: 0, 1: 1, 2: 2}]
    assert scheduler.longest() == 12
    scheduler.finish([1])
    assert admit(scheduler) == [{1: 3}]


def large(count: int) -> Iterator[GenerationRequest]:
    """Requests of which three fill a batch."""
    size = (PREFILL_PATCHES // 2 - 1, 1)
    return (GenerationRequest([0] * 5, np.zeros(size, np.float32), (2, 2)) for _ in range(count))


def test_many_free_sequences_are_filled_in_batches_by_the_size_of_their_images() -> None:
    assert [len(batch) for batch in Scheduler(large(8), 7).prefill_batches()] == [3, 3, 1]
    assert [len(batch) for batch in Scheduler(queue(40), 32).prefill_batches()] == [32]


def test_replies_to_one_prompt_count_as_one_image() -> None:
    (one,) = large(1)
    assert [len(batch) for batch in Scheduler([one] * 40, 32).prefill_batches()] == [32]


def test_a_batch_is_taken_only_after_the_one_before_was_prefilled() -> None:
    taken: list[int] = []
    source = (taken.append(i) or one for i, one in enumerate(large(8)))
    batches = Scheduler(source, 8).prefill_batches()
    next(batches)
    assert len(taken) == 3


class Arriving:
    """A `LiveSource` whose requests are there only once somebody has waited for them."""

    def __init__(self, there: int, prepared: int) -> None:
        self.there, self.prepared = there, prepared

    def __iter__(self) -> Iterator[GenerationRequest | None]:
        while True:
            self.there -= 1
            yield request() if self.there >= 0 else None
            self.there = max(self.there, 0)

    def wait(self) -> None:
        raise AssertionError("sequences are running")

    def wait_for_prepared(self) -> None:
        if not self.there and self.prepared:
            self.there, self.prepared = 1, self.prepared - 1

    def is_cancelled(self, number: int) -> bool:
        return False


def test_requests_that_are_being_prepared_join_the_batch_and_later_ones_do_not() -> None:
    source = Arriving(there=2, prepared=3)
    scheduler = Scheduler(source, 8)
    assert admit(scheduler) == [{0: 0, 1: 1, 2: 2, 3: 3, 4: 4}]
    source.there = 1
    assert admit(scheduler) == [{5: 5}]


def test_sequences_are_refilled_once_a_quarter_is_free() -> None:
    scheduler = Scheduler(queue(20), 8)
    admit(scheduler)
    scheduler.finish([3])
    assert admit(scheduler) == []
    scheduler.finish([6])
    assert admit(scheduler) == [{3: 8, 6: 9}]


def test_a_smaller_share_refills_earlier() -> None:
    scheduler = Scheduler(queue(20), 8, refill_share=8)
    admit(scheduler)
    scheduler.finish([3])
    assert admit(scheduler) == [{3: 8}]


def test_without_refilling_all_sequences_end_first() -> None:
    scheduler = Scheduler(queue(6), 4, refill=False)
    admit(scheduler)
    scheduler.finish([0, 1, 2])
    assert admit(scheduler) == []
    scheduler.finish([3])
    assert admit(scheduler) == [{0: 4, 1: 5}]


@pytest.mark.parametrize(
    ("running", "span"), [([0], 1), ([0, 1], 2), ([2], 3), ([0, 4], 5), ([1, 2], 3)]
)
def test_the_span_is_the_smallest_half_that_holds_all_running(
    running: list[int], span: int
) -> None:
    scheduler = Scheduler(queue(5), 5)
    admit(scheduler)
    scheduler.finish([sequence for sequence in range(5) if sequence not in running])
    assert scheduler.span() == span


def test_the_last_sequences_move_to_the_front_if_that_halves_the_span() -> None:
    scheduler = Scheduler(queue(8), 8)
    admit(scheduler)
    scheduler.finish([0, 2, 5, 6])
    assert scheduler.compact() == {4: 0, 7: 2}
    assert {s: r.number for s, r in scheduler.running.items()} == {1: 1, 3: 3, 0: 4, 2: 7}
    assert scheduler.span() == 4
    assert scheduler.compact() == {}


def test_nothing_moves_while_requests_wait() -> None:
    scheduler = Scheduler(queue(9), 8)
    admit(scheduler)
    scheduler.finish([0, 1, 2, 3, 4])
    assert scheduler.compact() == {}


def test_the_length_of_a_cache_is_bounded() -> None:
    scheduler = Scheduler(queue(1), 1)
    admit(scheduler)
    scheduler.advance(4, most=100)
    assert scheduler.longest() == 14
    scheduler.advance(4, most=16)
    assert scheduler.longest() == 16


def test_a_restart_puts_running_requests_before_the_waiting_ones() -> None:
    scheduler = Scheduler(queue(6), 4)
    admit(scheduler)
    scheduler.finish([1])
    scheduler.restart(2)
    assert scheduler.sequences == 2
    assert admit(scheduler) == [{0: 0, 1: 2}]
    scheduler.finish([0, 1])
    assert admit(scheduler) == [{0: 3, 1: 4}]
    scheduler.finish([0, 1])
    assert admit(scheduler) == [{0: 5}]


def test_there_is_work_until_all_sequences_and_the_queue_are_empty() -> None:
    scheduler = Scheduler(queue(1), 2)
    assert scheduler.has_work()
    admit(scheduler)
    assert scheduler.has_work()
    scheduler.finish([0])
    assert not scheduler.has_work()
