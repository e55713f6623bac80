"""A thread that does what it is given in turn."""

from threading import Event, Thread

import pytest

from tts_verifier.log.worker import Worker


@pytest.fixture
def worker():
    worker = Worker("test")
    yield worker
    worker.close()


def test_work_is_done_in_order(worker):
    done = []
    for number in range(50):
        worker.give(50, done.append, number)
    worker.wait()
    assert done == list(range(50))


def test_no_more_than_told_waits(worker):
    done = []
    for number in range(5):
        worker.give(1, done.append, number)
        assert len(done) >= number - 1


def test_what_is_given_later_is_not_waited_for(worker):
    first, last, waited = Event(), Event(), []
    worker.give(2, first.wait)
    waiting = Thread(target=lambda: waited.append(worker.wait()))
    waiting.start()
    worker.give(2, last.wait)
    first.set()
    waiting.join(10)
    assert waited == [None]
    last.set()


def fail_after(ready):
    ready.wait(10)
    raise ValueError("no")


def test_an_error_is_told_once_and_later_work_is_done(worker):
    ready, done = Event(), []
    worker.give(2, fail_after, ready)
    worker.give(2, done.append, 1)
    ready.set()
    with pytest.raises(ValueError, match="no"):
        worker.wait()
    worker.wait()
    assert done == [1]


def test_an_error_is_told_to_who_gives_more(worker):
    ready = Event()
    ready.set()
    worker.give(2, fail_after, ready)
    with pytest.raises(ValueError, match="no"):
        worker.give(0, ready.set)
