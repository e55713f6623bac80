"""Converts anything that holds an image to RGB, and draws heatmaps and boxes over images."""

from tts_verifier.images.convert import (
    MAX_PIXELS,
    ImageLike,
    as_image,
    as_images,
    read_image,
    unreadable,
)
from tts_verifier.images.display import card, overlay
from tts_verifier.images.folders import is_picture, picture_files, walk_files
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
    "is_picture",
    "open_image",
    "overlay",
    "picture_files",
    "read_image",
    "unreadable",
    "walk_files",
]
