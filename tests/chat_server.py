"""A chat endpoint on a port of its own, which answers as good and as bad ones do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = '{"alignment": 9, "aesthetics": 6, "plausibility": 3}'


def completion(text: str | None, *, reason: str = "stop", **more) -> dict:
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": reason, **more}
    usage = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
        "usage": usage,
    }  # fmt: skip


Answer = tuple[int, dict | bytes | Iterator[bytes], dict[str, str]]


class ChatServer(ThreadingHTTPServer):
    """Answers request number i by `answers[i]`, the last one from then on."""

    daemon_threads = True

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.ports: list[int] = []
        self.answers: list[Answer | Callable[[dict], Answer]] = [(200, completion(GOOD), {})]
        self.release = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        self.server.ports.append(self.client_address[1])
        place = min(len(self.server.requests), len(self.server.answers)) - 1
        answer = self.server.answers[place]
        if callable(answer):
            answer = answer(body)
        status, content, headers = answer
        if isinstance(content, dict):
            content = json.dumps(content).encode()
        known = {"content-length": str(len(content))} if isinstance(content, bytes) else {}
        self.send_response(status)
        for name, value in ({"content-type": "application/json"} | known | headers).items():
            self.send_header(name, value)
        self.end_headers()
        # A client that has waited long enough is gone.
        with suppress(ConnectionError):
            for part in [content] if isinstance(content, bytes) else content:
                self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Serves inside the block."""
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()
