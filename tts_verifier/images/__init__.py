"""Whatever holds a picture becomes RGB, and pictures get maps and boxes drawn in."""

from tts_verifier.images.convert import MAX_PIXELS, ImageLike, as_image, as_images
from tts_verifier.images.display import card, overlay

__all__ = ["MAX_PIXELS", "ImageLike", "as_image", "as_images", "card", "overlay"]
