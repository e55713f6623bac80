"""The verifier's process, which starts the others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from socket import socket, socketpair
from threading import Thread
from typing import Any, Final

from tts_verifier.errors import RunError
from tts_verifier.interfaces import Verifier
from tts_verifier.serve.answers import description_of
from tts_verifier.serve.dispatcher import Dispatcher
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.serve.processes.channel import (
    Answered,
    Channel,
    PairResult,
    Prepared,
    PreparingSetup,
    Setup,
    Submitted,
    Withdrawn,
    result_of,
)

_PROGRAM: Final = """
import sys
sys.path[:] = {path}
from {module} import {function}
{function}(*{descriptors})
"""
CANNOT_LISTEN: Final = 3
"""The status with which the HTTP process ends where it cannot listen on its address."""


class ServerProcessError(RunError):
    """Another process of the server has ended, though nobody asked it to."""


def cannot_listen(host: str, port: int) -> RunError:
    """Returns the error of an address that cannot be listened on; uvicorn has logged why."""
    return RunError(
        f"A server must be able to listen on {host}:{port}; it is not. Is the port in use, or the "
        "host no address of this machine?"
    )


class VerifierProcess:
    """This process, as the one of a server that has the verifier.

    It starts a process for HTTP and, for a verifier with a `pair_processor`, one that uses it: an
    ImageDoctor has a `PairProcessor` there.

    `end` and `kill` may be called from any thread, and from handlers of signals.

    Args:
        verifier: one; nobody else should use it meanwhile.
        host: the address to listen on.
        port: of TCP; 0 = any that is free.
        limits: of requests.
        token: that requests must have; None = none.

    Raises:
        InputError: the verifier's settings are no values of JSON.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        host: str,
        port: int,
        limits: RequestLimits,
        token: str | None = None,
    ) -> None:
        self._setup = Setup(description_of(verifier), host, port, limits, token)
        # The HTTP process counts what waits, and refuses what is too much.
        self._dispatcher = Dispatcher(verifier, sys.maxsize)
        # How the preparing process is started; None = the verifier takes pictures.
        self._preparing: PreparingSetup | None = None
        engines: Any = verifier
        if (processor := getattr(engines, "pair_processor", None)) is not None:
            self._preparing = PreparingSetup(
                processor, engines.live_details, engines.room, self._setup
            )
        # By what they do.
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._open: dict[int, Future[Any]] = {}
        # Answered pairs by their numbers; None wakes the thread that sends them.
        self._answered: SimpleQueue[tuple[int, Future[Any]] | None] = SimpleQueue()
        self._ending = self._ended = False

    def end(self) -> None:
        """Asks the HTTP process to answer what it has accepted, and to end."""
        self._ending = True
        self._answered.put(None)

    def kill(self) -> None:
        """Ends the other processes at once."""
        for process in list(self._processes.values()):
            process.kill()

    def run(self) -> None:
        """Serves until `end` is called and all that was accepted is answered.

        Raises:
            RunError: the address cannot be listened on.
            ServerProcessError: another process was killed or has failed. The verifier may still
                work on a picture then, in a thread.
        """
        self._dispatcher.start()
        try:
            self._serve()
        finally:
            for verdict in list(self._open.values()):
                verdict.cancel()
            # Waits for the verifier, which may never return.
            closing = Thread(target=self._dispatcher.close, daemon=True)
            closing.start()
        self._check()
        closing.join()

    def _serve(self) -> None:
        """Runs the other processes until they have ended."""
        ours, theirs = socketpair()
        # A worker that a verifier forks may outlive this process. The others would not see that
        # this one has ended.
        os.register_at_fork(after_in_child=ours.close)
        try:
            with ours, theirs:
                self._start(theirs)
                theirs.close()
                self._pass_on(Channel(ours))
        except BaseException:
            self.kill()
            raise
        finally:
            for process in self._processes.values():
                process.wait()

    def _start(self, end: socket) -> None:
        """Starts the other processes.

        Args:
            end: the other end of this process's socket.
        """
        if self._preparing is None:
            self._start_process("HTTP", "server", "speak_http", end)
            return
        upper, lower = socketpair()
        with upper, lower:
            self._start_process("HTTP", "server", "speak_http", upper)
            self._start_process("preparing", "processes.preparing", "prepare_pairs", lower, end)

    def _start_process(self, name: str, module: str, function: str, *ends: socket) -> None:
        descriptors = [end.fileno() for end in ends]
        program = _PROGRAM.format(
            # Python ignores what is no text there.
            path=[entry for entry in sys.path if isinstance(entry, str)],
            module=f"tts_verifier.serve.{module}",
            function=function,
            descriptors=descriptors,
        )
        # Not `multiprocessing`, which would run the user's script again. A terminal sends Ctrl-C to
        # all processes of its session; these are told by this one.
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )

    def _pass_on(self, channel: Channel) -> None:
        """Feeds the dispatcher until the others have ended."""
        # If they have ended already, there are no messages.
        with suppress(ConnectionError):
            channel.send(self._preparing or self._setup)
        sending = Thread(target=self._send, args=(channel,), name="sending")
        sending.start()
        try:
            for message in channel.messages():
                if isinstance(message, Withdrawn):
                    for number in message.numbers:
                        if (verdict := self._open.pop(number, None)) is not None:
                            verdict.cancel()
                elif isinstance(message, Prepared):
                    self._submit_prepared(message)
                else:
                    self._submit(message)
                # Its pixels would stay until the next one comes.
                del message
        finally:
            self._ended = True
            self._answered.put(None)
            sending.join()

    def _submit(self, message: Submitted) -> None:
        try:
            verdicts = self._dispatcher.submit(message.pixels, message.prompts, message.detail)
        # Memory may run out.
        except Exception as error:
            verdicts = _failed(error, len(message.prompts))
        self._wait_for(range(message.first, message.first + len(verdicts)), verdicts)

    def _submit_prepared(self, message: Prepared) -> None:
        numbers, pairs = zip(*message.pairs, strict=True)
        try:
            answers = self._dispatcher.submit_prepared(pairs, message.detail)
        except Exception as error:
            answers = _failed(error, len(pairs))
        self._wait_for(numbers, answers)

    def _wait_for(self, numbers: Sequence[int], results: Sequence[Future[Any]]) -> None:
        for number, result in zip(numbers, results, strict=True):
            self._open[number] = result
            result.add_done_callback(partial(self._leave, number))

    def _leave(self, number: int, verdict: Future[Any]) -> None:
        """Has a pair's answer sent; called by the verifier's threads."""
        self._open.pop(number, None)
        if not verdict.cancelled():
            self._answered.put((number, verdict))

    def _send(self, channel: Channel) -> None:
        """Sends what is answered, all that there is at a time."""
        try:
            while (results := self._results()) is not None:
                channel.send(Answered(results, self._ending))
        except ConnectionError:
            # Another process has ended, and `run` says so.
            pass
        except BaseException:
            # Clients would wait for answers for ever.
            self.kill()
            raise

    def _results(self) -> list[tuple[int, PairResult]] | None:
        """Waits for pairs that are answered; None = another process has ended."""
        found = [self._answered.get()]
        with suppress(Empty):
            while True:
                found.append(self._answered.get_nowait())
        if self._ended:
            return None
        return [(pair[0], result_of(pair[1])) for pair in found if pair is not None]

    def _check(self) -> None:
        statuses = {name: process.returncode for name, process in self._processes.items()}
        if statuses["HTTP"] == CANNOT_LISTEN:
            raise cannot_listen(self._setup.host, self._setup.port)
        # The HTTP process, which was started first, fails where the other one has ended too.
        for name, status in reversed(statuses.items()):
            if status:
                how = f"by signal {-status}" if status < 0 else f"with status {status}"
                raise ServerProcessError(
                    f"The {name} process must live as long as the server; it has ended {how}. The "
                    "log may say why. If the machine's memory ran out, start the server again with "
                    "a smaller --max-memory."
                )


def _failed(error: Exception, count: int) -> list[Future[Any]]:
    failed: Future[Any] = Future()
    failed.set_exception(error)
    return [failed] * count
