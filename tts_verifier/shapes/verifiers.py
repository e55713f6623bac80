"""Oracle and judge as verifiers, so that recipes can name them (usually under `judge:`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import Verifier, check_detail, check_pairs
from tts_verifier.shapes.grammar import Spec, parse_caption
from tts_verifier.shapes.readers.constraints import Reading, pixels_of
from tts_verifier.shapes.vocabulary import SIZE
from tts_verifier.types import Box, Cost, Detail, Heatmap, Heatmaps, Setting, Verdict


class ReadingVerifier(Verifier):
    """Scores `passed` (0 or 1) and `score` (the weighted share of constraints that hold).

    Safe to share between threads: it keeps no state.
    """

    objective = Objective({"score": 1.0})
    details: tuple[Detail, ...] = ("diagnose",)

    map_names = ("misalignment",)

    @abstractmethod
    def read(self, pixels: NDArray[np.uint8], spec: Spec) -> Reading:
        """Reads an image, (128, 128, 3) uint8 sRGB, against a spec."""

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Reads image i against prompt i; both details give the same scores and heatmaps.

        Raises:
            InputError: an image cannot be used, a prompt is outside the grammar of
                `shapes.grammar`, or the lengths differ.
        """
        check_detail(detail)
        pil_images = as_images(images)
        specs = [parse_caption(prompt) for prompt in check_pairs(pil_images, prompts)]
        return [self._verdict(p, s, detail) for p, s in zip(pil_images, specs, strict=True)]

    def _verdict(self, image: Image.Image, spec: Spec, detail: Detail) -> Verdict:
        reading = self.read(pixels_of(image), spec)
        # Readers work on 128 x 128 pixels, a verdict's boxes are in pixels of the image.
        scale_x, scale_y = image.width / SIZE, image.height / SIZE
        boxes: tuple[Box, ...] = tuple(
            (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y)
            for x1, y1, x2, y2 in reading.boxes
        )
        return Verdict(
            self.scores(reading),
            Heatmaps({"misalignment": Heatmap(reading.misalignment, image.size)}),
            boxes,
            reading.describe(),
            detail,
            Cost(verifier_calls=1),
        )

    def scores(self, reading: Reading) -> dict[str, float]:
        """Returns the scores of a reading by name."""
        return {"passed": float(reading.passed), "score": reading.score}


class OracleVerifier(ReadingVerifier):
    """Reads images by colour and geometry, with the oracle.

    Safe to share between threads: it keeps no state.
    """

    settings: Mapping[str, Setting] = {"verifier": "shapes-oracle"}
    score_names = ("passed", "score")

    def read(self, pixels: NDArray[np.uint8], spec: Spec) -> Reading:
        """Reads an image, (128, 128, 3) uint8 sRGB, against a spec."""
        from tts_verifier.shapes.readers.oracle import read_by_geometry

        return read_by_geometry(pixels, spec)


class JudgeVerifier(ReadingVerifier):
    """Reads images by fitting the renderer; also scores `clean`, 1 - the unexplained share.

    Safe to share between threads: it keeps no state.
    """

    settings: Mapping[str, Setting] = {"verifier": "shapes-judge"}
    score_names = ("passed", "score", "clean")

    def read(self, pixels: NDArray[np.uint8], spec: Spec) -> Reading:
        """Reads an image, (128, 128, 3) uint8 sRGB, against a spec."""
        from tts_verifier.shapes.readers.judge import read_by_fitting

        return read_by_fitting(pixels, spec)

    def scores(self, reading: Reading) -> dict[str, float]:
        """Returns the scores of a reading by name."""
        return {**super().scores(reading), "clean": 1.0 - reading.artifact}
