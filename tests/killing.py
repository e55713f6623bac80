"""Fakes that die while a run goes on, and how much work a run did."""

from collections.abc import Callable, Sequence
from typing import Any

from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Job, Sample, Verdict


class Killed(BaseException):
    """Stands for Ctrl-C and worse."""


class DyingGenerator(FakeGenerator):
    """Serves some batches and then, once, dies or acts.

    Args:
        batches: how many it serves before.
        act: what it does instead of dying.
    """

    def __init__(self, batches: int, act: Callable[[], None] | None = None) -> None:
        super().__init__(batch_size=4)
        self.batches_left, self.act = batches, act

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        self.batches_left -= 1
        if self.batches_left == -1:
            if self.act is None:
                raise Killed
            self.act()
        return super().generate(jobs)


class DyingVerifier(FakeVerifier):
    """Verifies some batches and then dies at every call."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches_left = batches

    def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
        self.batches_left -= 1
        if self.batches_left < 0:
            raise Killed
        return super().verify(images, prompts, **options)


def images_generated(generator: FakeGenerator) -> int:
    """Returns how many images a generator made."""
    return sum(int(call[1:]) for call in generator.trace)
