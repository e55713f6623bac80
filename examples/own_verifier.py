"""A verifier of your own: copy this file, and replace what `verify` computes.

    python examples/own_verifier.py

It scores an image by its mean brightness, checks itself with the package's conformance checks,
and chooses the brightest of four candidates.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tts_verifier import BestOfN, Objective, Verdict, Verifier, run
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import check_pairs
from tts_verifier.testing import FakeGenerator, check_verifier
from tts_verifier.types import Cost, Detail


class Brightness(Verifier):
    """Scores images by their mean brightness. May be shared between threads."""

    settings = {"verifier": "brightness"}  # noqa: RUF012
    """Everything that decides a verdict; it becomes part of the log's header."""
    objective = Objective({"brightness": 1.0})
    """What `rerank` sorts by, and what a run climbs unless it is given another objective."""
    score_names = ("brightness",)
    """The names of all scores: a run refuses an objective of any other before it draws."""

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Returns the verdict on image i for prompt i."""
        converted = as_images(images)  # PIL images in RGB, whatever was given
        check_pairs(converted, prompts)
        return [self._verdict(image, detail) for image in converted]

    def _verdict(self, image: Image.Image, detail: Detail) -> Verdict:
        # A score that is not known is NaN, never 0; a heatmap that is not known is absent.
        scores = {"brightness": float(np.asarray(image).mean()) / 255}
        return Verdict(scores, detail=detail, cost=Cost(verifier_calls=1))


if __name__ == "__main__":
    samples = [Image.new("RGB", (8, 8), colour) for colour in ("red", "white")]
    check_verifier(Brightness(), samples, ["a red square", "a white square"])
    result = run(["a bright image"], FakeGenerator(), Brightness(), BestOfN(4))
    for trial in result.trials:
        print(f"{trial.id}  brightness {trial.objective:.3f}")
