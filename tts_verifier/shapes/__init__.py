"""The miniature world: captioned scenes of coloured shapes, whose truth is known.

>>> from tts_verifier import shapes
>>> captions = shapes.captions(8, seed=0)
>>> picture = shapes.render(captions[0], seed=1)
>>> shapes.judge(picture, captions[0]).passed
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tts_verifier.images import ImageLike, as_image
from tts_verifier.shapes.captions import captions
from tts_verifier.shapes.grammar import parse
from tts_verifier.shapes.readers.constraints import Reading, pixels_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Reading", "captions", "judge", "oracle", "render"]


def render(caption: str, seed: int) -> Image.Image:
    """Draws a picture that serves a caption: RGB, 128 x 128.

    Raises:
        InputError: the caption is outside the grammar.
    """
    import torch

    from tts_verifier.shapes.renderer import as_image as to_pil
    from tts_verifier.shapes.renderer import render_batch
    from tts_verifier.shapes.scene import sample_scenes

    scenes = sample_scenes([parse(caption)], torch.Generator().manual_seed(seed))
    return to_pil(render_batch(scenes)[0])


def oracle(image: ImageLike, caption: str) -> Reading:
    """Reads a picture by colour and geometry; see `oracle_reader`.

    Raises:
        InputError: the image cannot be used, or the caption is outside the grammar.
    """
    from tts_verifier.shapes.readers.oracle import read

    return read(pixels_of(as_image(image)), parse(caption))


def judge(image: ImageLike, caption: str) -> Reading:
    """Judges a picture by fitting the renderer to it; see `judge_reader`.

    Raises:
        InputError: the image cannot be used, or the caption is outside the grammar.
    """
    from tts_verifier.shapes.readers.judge import read

    return read(pixels_of(as_image(image)), parse(caption))
