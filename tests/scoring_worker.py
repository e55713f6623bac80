"""A verifier for workers that notes what it judges, kills one of them, and hangs in another."""

import os
import signal
from pathlib import Path
from typing import Any

from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict


class Dying(FakeVerifier):
    """Kills the first process that comes to a third call, and hangs in the second one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
        with open(self.folder / "judged", "a") as file:
            file.write(f"{len(images)}\n")
        if len(self.trace) == 2:
            for name, end in (("killed", lambda: os.kill(os.getpid(), 9)), ("hung", signal.pause)):
                try:
                    (self.folder / name).touch(exist_ok=False)
                    end()
                except FileExistsError:
                    continue
        return super().verify(images, prompts, **options)


def load_dying(folder: str) -> Dying:
    return Dying(Path(folder))
