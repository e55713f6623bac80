"""A verifier for worker processes that notes what it judges and kills one of them, once."""

import os
import signal
from pathlib import Path
from typing import Any

from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict


class Dying(FakeVerifier):
    """Kills its process at its third call, unless another process was killed before."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
        with open(self.folder / "judged", "a") as file:
            file.write(f"{len(images)}\n")
        if len(self.trace) == 2:
            try:
                (self.folder / "killed").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return super().verify(images, prompts, **options)


def load_dying(folder: str) -> Dying:
    return Dying(Path(folder))
