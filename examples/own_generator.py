"""An adapter of your own: any model, or an HTTP API, that makes a picture of a text and a seed.

    python examples/own_generator.py

checks it with the conformance suite, then searches with it. `draw` stands for your model: a
call of an API would post the text and the seed and open the bytes that come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from tts_verifier import BestOfN, run
from tts_verifier.testing import FakeVerifier, check_generator
from tts_verifier.types import Cost, Draw, Job, Sample, Setting


def draw(text: str, seed: int) -> Image.Image:
    """Returns a picture: here a colour that the text and the seed decide."""
    colour = np.random.default_rng([seed, *text.encode()]).integers(0, 256, 3)
    return Image.new("RGB", (64, 64), tuple(colour.tolist()))


class OwnGenerator:
    """Serves drawings from noise; what it `supports` is checked before anything is drawn."""

    supports: frozenset[type] = frozenset({Draw})
    settings: Mapping[str, Setting] = {"model": "my-model-v1"}
    batch_size = 4

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Returns a sample for each job, in order; a failure is one with an `error`."""
        return [self._sample(job) for job in jobs]

    def _sample(self, job: Job) -> Sample:
        if not isinstance(job.proposal, Draw):
            return Sample(job, None, error="only drawings from noise are served")
        try:
            image = draw(job.prompt.text, job.proposal.seed)
        except OSError as error:
            return Sample(job, None, error=str(error))
        return Sample(job, image, cost=Cost(network_evaluations=1))


if __name__ == "__main__":
    check_generator(OwnGenerator())
    result = run(["a red circle"], OwnGenerator(), FakeVerifier(), BestOfN(8))
    best = result.choices["0000"].trial
    print("no usable candidate" if best is None else f"best {best.objective:.3f}: {best.proposal}")
