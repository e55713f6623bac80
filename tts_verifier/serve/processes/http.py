"""The HTTP process, as the verifier's process sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from socket import socketpair
from threading import Thread
from typing import Final

from PIL import Image

from tts_verifier.errors import RunError
from tts_verifier.interfaces import Verifier
from tts_verifier.serve.answers import description_of
from tts_verifier.serve.dispatcher import Dispatcher
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.serve.processes.channel import (
    Answered,
    Channel,
    PairResult,
    Setup,
    Submitted,
    Withdrawn,
    result_of,
)
from tts_verifier.types import Verdict

_PROGRAM: Final = """
import sys
sys.path[:] = {path}
from tts_verifier.serve.server import speak_http
speak_http({descriptor})
"""
CANNOT_LISTEN: Final = 3
"""The status with which the HTTP process ends where it cannot listen on its address."""


class HTTPProcessError(RunError):
    """The HTTP process has ended, though nobody asked it to."""


def cannot_listen(host: str, port: int) -> RunError:
    """Returns the error of an address that cannot be listened on; uvicorn has logged why."""
    return RunError(
        f"A server must be able to listen on {host}:{port}; it is not. Is the port in use, or the "
        "host no address of this machine?"
    )


class HTTPProcess:
    """A server whose HTTP is a process of its own, and whose verifier is in this one.

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
        self._process: subprocess.Popen[bytes] | None = None
        self._open: dict[int, Future[Verdict]] = {}
        # Answered pairs by their numbers; None wakes the thread that sends them.
        self._answered: SimpleQueue[tuple[int, Future[Verdict]] | None] = SimpleQueue()
        self._ending = self._ended = False

    def end(self) -> None:
        """Asks the HTTP process to answer what it has accepted, and to end."""
        self._ending = True
        self._answered.put(None)

    def kill(self) -> None:
        """Ends the HTTP process at once."""
        if self._process is not None:
            self._process.kill()

    def run(self) -> None:
        """Serves until `end` is called and all that was accepted is answered.

        Raises:
            RunError: the address cannot be listened on.
            HTTPProcessError: the HTTP process was killed or has failed. The verifier may still work
                on a picture then, in a thread.
        """
        self._dispatcher.start()
        try:
            status = self._serve()
        finally:
            for verdict in list(self._open.values()):
                verdict.cancel()
            # Waits for the verifier, which may never return.
            closing = Thread(target=self._dispatcher.close, daemon=True)
            closing.start()
        self._check(status)
        closing.join()

    def _serve(self) -> int:
        """Runs the HTTP process; returns its status."""
        ours, theirs = socketpair()
        # A worker that a verifier forks may outlive this process. The HTTP process would not see
        # that this one has ended.
        os.register_at_fork(after_in_child=ours.close)
        with ours:
            with theirs:
                # Python ignores what is no text there.
                path = [entry for entry in sys.path if isinstance(entry, str)]
                program = _PROGRAM.format(path=path, descriptor=theirs.fileno())
                # Not `multiprocessing`, which would run the user's script again. A terminal sends
                # Ctrl-C to all processes of its session; this one is told by us.
                self._process = subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            # Waits for it at the end.
            with self._process:
                try:
                    self._pass_on(Channel(ours))
                except BaseException:
                    self._process.kill()
                    raise
        return self._process.returncode

    def _pass_on(self, channel: Channel) -> None:
        """Feeds the dispatcher until the HTTP process has ended."""
        # If it has ended already, there are no messages.
        with suppress(ConnectionError):
            channel.send(self._setup)
        sending = Thread(target=self._send, args=(channel,), name="sending")
        sending.start()
        try:
            for message in channel.messages():
                if isinstance(message, Withdrawn):
                    verdict = self._open.pop(message.number, None)
                    if verdict is not None:
                        verdict.cancel()
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
            images = [Image.fromarray(pixels) for pixels in message.pixels]
            verdicts = self._dispatcher.submit(images, message.prompts, message.detail)
        # Memory may run out.
        except Exception as error:
            failed: Future[Verdict] = Future()
            failed.set_exception(error)
            verdicts = [failed] * len(message.prompts)
        for number, verdict in enumerate(verdicts, message.first):
            self._open[number] = verdict
            verdict.add_done_callback(partial(self._leave, number))

    def _leave(self, number: int, verdict: Future[Verdict]) -> None:
        """Has a pair's answer sent; called by the verifier's threads."""
        self._open.pop(number, None)
        if not verdict.cancelled():
            self._answered.put((number, verdict))

    def _send(self, channel: Channel) -> None:
        """Sends what is answered, all that there is at a time."""
        try:
            while (results := self._results()) is not None:
                channel.send(Answered(results, self._dispatcher.failure, self._ending))
        except ConnectionError:
            # The HTTP process has ended, and `run` says so.
            pass
        except BaseException:
            # It would wait for answers for ever.
            self.kill()
            raise

    def _results(self) -> list[tuple[int, PairResult]] | None:
        """Waits for pairs that are answered; None = the HTTP process has ended."""
        found = [self._answered.get()]
        with suppress(Empty):
            while True:
                found.append(self._answered.get_nowait())
        if self._ended:
            return None
        return [(pair[0], result_of(pair[1])) for pair in found if pair is not None]

    def _check(self, status: int) -> None:
        if status == CANNOT_LISTEN:
            raise cannot_listen(self._setup.host, self._setup.port)
        if status:
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            raise HTTPProcessError(
                f"The HTTP process must live as long as the server; it has ended {how}. The "
                "log may say why. If the machine's memory ran out, start the server again with a "
                "smaller --max-memory."
            )
