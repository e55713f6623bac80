"""The miniature world: captioned scenes of coloured shapes, whose truth is known.

>>> from tts_verifier import shapes
>>> captions = shapes.captions(8, seed=0)
>>> image = shapes.render(captions[0], seed=1)
>>> shapes.judge(image, captions[0]).passed
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tts_verifier.images import ImageLike, as_image
from tts_verifier.shapes.captions import captions
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.readers.constraints import Reading, pixels_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Reading", "captions", "judge", "oracle", "render"]

# The functions below import torch and SciPy when they are called: whoever only needs captions,
# such as a recipe that lists them, does not wait for either.


def render(caption: str, seed: int) -> Image.Image:
    """Renders an image that satisfies a caption.

    Args:
        caption: within the grammar of `shapes.grammar`.
        seed: decides everything that the caption leaves open; any 64-bit integer.

    Returns:
        An RGB image of 128 x 128 pixels.

    Raises:
        InputError: the caption is outside the grammar.
    """
    import torch

    from tts_verifier.shapes.renderer import render_batch, to_pil_images
    from tts_verifier.shapes.scene import sample_scenes

    scenes = sample_scenes([parse_caption(caption)], torch.Generator().manual_seed(seed))
    return to_pil_images(render_batch(scenes))[0]


def oracle(image: ImageLike, caption: str) -> Reading:
    """Reads an image by colour and geometry; see `shapes.readers.oracle`.

    The oracle labels training data. Reports rely on the `judge`.

    Raises:
        InputError: the image cannot be used, or the caption is outside the grammar.
    """
    from tts_verifier.shapes.readers.oracle import read_by_geometry

    return read_by_geometry(pixels_of(as_image(image)), parse_caption(caption))


def judge(image: ImageLike, caption: str) -> Reading:
    """Reads an image by fitting the renderer to it; see `shapes.readers.judge`.

    This is the held-out judge of the miniature world: no model is trained on its readings.

    Raises:
        InputError: the image cannot be used, or the caption is outside the grammar.
    """
    from tts_verifier.shapes.readers.judge import read_by_fitting

    return read_by_fitting(pixels_of(as_image(image)), parse_caption(caption))
