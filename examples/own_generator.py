"""A generator of your own: any model, or an HTTP API, that makes an image from prompt and seed.

    python examples/own_generator.py

checks it with the conformance suite, then searches with it. `make_image` stands for your model; a
client of an API would post the prompt and the seed, and open the bytes of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from tts_verifier import BestOfN, run
from tts_verifier.testing import FakeVerifier, check_generator
from tts_verifier.types import Cost, Draw, Job, Sample, Setting


def make_image(prompt: str, seed: int) -> Image.Image:
    """Returns an image: here of one colour, which depends on the prompt and the seed."""
    colour = np.random.default_rng([seed, *prompt.encode()]).integers(0, 256, 3)
    return Image.new("RGB", (64, 64), tuple(colour.tolist()))


class OwnGenerator:
    """Serves `Draw` proposals only; the runner checks `supports` before it generates anything."""

    supports: frozenset[type] = frozenset({Draw})
    settings: Mapping[str, Setting] = {"model": "my-model-v1"}
    batch_size = 4

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Returns a sample for each job, in order; a failed job has a sample with an `error`."""
        return [self._sample(job) for job in jobs]

    def _sample(self, job: Job) -> Sample:
        if not isinstance(job.proposal, Draw):
            return Sample(job, None, error="only Draw proposals are served")
        try:
            image = make_image(job.prompt.text, job.proposal.seed)
        except OSError as error:
            return Sample(job, None, error=str(error))
        return Sample(job, image, cost=Cost(network_evaluations=1))


if __name__ == "__main__":
    check_generator(OwnGenerator())
    result = run(["a red circle"], OwnGenerator(), FakeVerifier(), BestOfN(8))
    best = result.choices["0000"].trial
    print("no usable candidate" if best is None else f"best {best.objective:.3f}: {best.proposal}")
