"""A headless Chromium, driven over two pipes through its DevTools protocol; no package needed.

Protocol: https://chromedevtools.github.io/devtools-protocol/ (messages end with a zero byte).
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
QUIET = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
SECONDS = 30.0


def find_chromium() -> str | None:
    """Returns the browser's path, None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Chromium:
    """One tab.

    Args:
        program: the browser.
        profile: a folder for what it remembers.

    Raises:
        TimeoutError: it does not answer.
    """

    def __init__(self, program: str, profile: Path) -> None:
        hears, self._to = os.pipe()
        self._from, says = os.pipe()
        # Out of the way of 3 and 4, on which it hears and says.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (hears, says)]
        command = [sys.executable, "-c", START, *map(str, ends), program, *QUIET.split()]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"], pass_fds=ends, stderr=subprocess.DEVNULL
        )
        for end in (hears, says, *ends):
            os.close(end)
        self._buffer, self._count, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        there = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = there["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._count, "method": method, "params": values, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], SECONDS)[0]:
                raise TimeoutError(f"The browser says nothing for {SECONDS:g} s.")
            self._buffer += os.read(self._from, 2**20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, page: Path) -> None:
        """Opens a file and waits until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=page.absolute().as_uri())
        self.wait("document.readyState == 'complete'")

    def look(self, script: str) -> Any:
        """Returns the value of an expression, as JSON."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']['exception']}")
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.look(script):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} is not true after {SECONDS:g} s.")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Presses and lets go a key, as a person does."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        for kind, more in (("keyDown", text), ("keyUp", {})):
            values = {"key": key, "windowsVirtualKeyCode": code, **more}
            self.call("Input.dispatchKeyEvent", type=kind, **values)

    def point(self, selector: str) -> None:
        """Moves the mouse to the middle of an element."""
        part = f"document.querySelector({json.dumps(selector)})"
        box = f"(b => [b.x + b.width / 2, b.y + b.height / 2])({part}.getBoundingClientRect())"
        self.look(f"{part}.scrollIntoView({{block: 'center'}})")
        x, y = self.look(box)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Sets the window's size in pixels, and whether dark is preferred."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Writes what is seen to a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def requests(self) -> list[str]:
        """Returns the addresses that were asked for since the page was opened."""
        self.call("Page.getFrameTree")
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]
