"""A picture that people rated: what a verifier is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.images import ImageLike, as_images

ASPECTS: Final = ("plausibility", "aesthetics", "semantic_alignment", "overall")
"""The rated scores, in the order of the published table."""
MARKED_MAPS: Final = ("artifact", "misalignment")
"""The marked heatmaps, in the order of the published table."""


@dataclass(frozen=True, slots=True, eq=False)
class RatedPicture:
    """A picture, its prompt, and what people said of it."""

    name: str
    """Names the picture in messages and tables."""
    picture: ImageLike
    """The picture, or the path of its file."""
    prompt: str
    """What it was generated for."""
    scores: Mapping[str, float]
    """Each of ASPECTS in [0, 1], higher = better."""
    maps: Mapping[str, NDArray[np.uint8]]
    """Each of MARKED_MAPS, uint8 (H, W), 255 = marked by all; may be decoded at each access."""

    def image(self) -> Image.Image:
        """Returns the picture in RGB; raises InputError if it cannot be read."""
        (image,) = as_images([self.picture])
        return image
