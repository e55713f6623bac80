"""Converts anything that holds an image to RGB, and draws heatmaps and boxes over images."""

from tts_verifier.images.convert import MAX_PIXELS, ImageLike, as_image, as_images
from tts_verifier.images.display import card, overlay
from tts_verifier.images.folders import files_below, picture_files
from tts_verifier.images.formats import FORMATS, SUFFIXES, open_image
from tts_verifier.images.listed import as_list

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageLike",
    "as_image",
    "as_images",
    "as_list",
    "card",
    "files_below",
    "open_image",
    "overlay",
    "picture_files",
]
