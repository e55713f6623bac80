"""Signals while a run trains."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tts_verifier.training.common.interruption import Interruption


def test_the_first_signal_is_noted_and_does_its_work_later(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        interruption = Interruption()
        with interruption:
            interruption.raise_if_asked()
            assert not interruption.asked
            signal.raise_signal(number)
            assert interruption.asked
            # As process managers do that lose patience.
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(error) as raised:
            interruption.raise_if_asked()
        assert number == signal.SIGINT or raised.value.code == 143
        assert "Stopping after this step or the next." in capfd.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_stops_at_once(first: int) -> None:
    with Interruption():
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_it_is_noted_where_nobody_reads_what_is_said() -> None:
    read, write = os.pipe()
    os.close(read)
    said = os.dup(2)
    try:
        os.dup2(write, 2)
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGTERM)
            assert interruption.asked
    finally:
        os.dup2(said, 2)
        os.close(said)
        os.close(write)


def test_signals_that_are_ignored_stay_so() -> None:
    # As `nohup` and the shell's `&` start commands.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert not interruption.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_trains_without_it() -> None:
    asked: list[bool] = []

    def train() -> None:
        with Interruption() as interruption:
            asked.append(interruption.asked)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert asked == [False]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_outlives_ctrl_c_and_ends_by_sigterm() -> None:
    read, write = os.pipe()
    with Interruption():
        child = os.fork()
        if not child:
            signal.alarm(60)
            signal.raise_signal(signal.SIGINT)
            os.write(write, b"lives")
            while True:
                signal.pause()
        assert os.read(read, 9) == b"lives"
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    os.close(read)
    os.close(write)
