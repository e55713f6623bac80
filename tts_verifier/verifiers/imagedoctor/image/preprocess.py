"""Turns images into patches, as Qwen2-VL's processor does, with Pillow and numpy only.

It reads preprocessor_config.json of any generation of transformers, and processor_config.json,
in which newer generations nest it. One key is our own: `input_size` is the side of the square
that an image is fitted into first. It is 512 if absent, as in the official scorer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.fields import integer_field, number_field
from tts_verifier.loading.files import file_inside, read_json
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.letterbox import (
    FitMode,
    fit_to_square,
    smart_resize,
)

T = TypeVar("T", bound=np.generic)
ChannelValues = tuple[float, float, float]

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_LARGEST_VALUES = {
    "input_size": 4096,
    "patch_size": 256,
    "temporal_patch_size": 16,
    "merge_size": 16,
    "min_pixels": 2**40,
    "max_pixels": 2**40,
}
"""Field -> its largest value."""


@dataclass(frozen=True, slots=True)
class Patches:
    """One image as the model takes it."""

    values: NDArray[np.float32]
    """(rows * columns, 3 * frames * patch * patch). The patches of one merged token follow each
    other; the merged tokens are in raster order."""
    grid: tuple[int, int]
    """(rows, columns) of patches."""


@dataclass(frozen=True, slots=True)
class Processor:
    """Resizes, normalises and cuts images; the defaults are those of Qwen2.5-VL.

    It may be shared between threads.
    """

    input_size: int = 512
    """Side of the square that an image is fitted into, in pixels."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    temporal_patch_size: int = 2
    """Frames of a patch; a still image fills all of them."""
    merge_size: int = 2
    """Patches along a side of one merged visual token."""
    min_pixels: int = 56 * 56
    """The smallest area after resizing."""
    max_pixels: int = 28 * 28 * 16384
    """The largest area after resizing."""
    image_mean: ChannelValues = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from each channel after rescaling (CLIP's)."""
    image_std: ChannelValues = (0.26862954, 0.26130258, 0.27577711)
    """Each channel is divided by it (CLIP's)."""
    rescale_factor: float = 1 / 255
    """Multiplies 8-bit values."""

    @classmethod
    def from_folder(cls, folder: Path, config: ImageDoctorConfig) -> Processor:
        """Reads the processor's file of a checkpoint folder.

        Raises:
            CheckpointError: the file is missing, damaged, or does not fit the vision tower.
        """
        files = (file_inside(folder, name) for name in PROCESSOR_FILES)
        path = next((path for path in files if path.exists()), None)
        if path is None:
            raise CheckpointError(
                f"{folder} has no {PROCESSOR_FILES[0]}. Save the checkpoint's image processor "
                "there."
            )
        try:
            raw = read_json(folder, path.name)
            processor = cls.from_dict(raw.get("image_processor", raw))
            processor.check()
        except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{path} must describe an image processor: {error}.") from None
        except CheckpointError as error:
            raise CheckpointError(f"{path} must describe an image processor: {error}") from None
        for name in ("patch_size", "temporal_patch_size"):
            if getattr(processor, name) != config.vision[name]:
                raise CheckpointError(
                    f"{path} and config.json must agree: {name} is {getattr(processor, name)} and "
                    f"{config.vision[name]}. Take both from the same checkpoint."
                )
        if processor.merge_size != config.vision["spatial_merge_size"]:
            raise CheckpointError(
                f"{path}: merge_size {processor.merge_size} must equal the vision tower's "
                f"spatial_merge_size {config.vision['spatial_merge_size']}."
            )
        return processor

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Processor:
        """Reads the keys that matter; `size` overrides `min_pixels` and `max_pixels`."""
        size = raw.get("size") or {}
        # Newer files spell absent values as null, which counts as absent here.
        arguments: dict[str, Any] = {name: raw[name] for name in cls.__slots__ if raw.get(name)}
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if size.get(edge):
                arguments[name] = size[edge]
        for name in ("image_mean", "image_std"):
            if name in arguments:
                arguments[name] = tuple(map(float, arguments[name]))
        return cls(**arguments)

    def check(self) -> None:
        """Raises CheckpointError when a value has another type, or a size that cannot be meant."""
        for name, most in _LARGEST_VALUES.items():
            integer_field(name, getattr(self, name), 1, most)
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) != 3:
                raise CheckpointError(f"{name} must have 3 numbers, got {len(values)}.")
            for value in values:
                number_field(name, value, 1e-6 if name == "image_std" else -1e3, 1e3)
        number_field("rescale_factor", self.rescale_factor, 1e-9, 1e3)
        if (
            self.min_pixels > self.max_pixels
            or max(self._resized()) > _LARGEST_VALUES["input_size"]
        ):
            raise CheckpointError(
                "min_pixels and max_pixels must frame an image of at most "
                f"{_LARGEST_VALUES['input_size']} pixels a side, got {self.min_pixels} and "
                f"{self.max_pixels}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of preprocessor_config.json, which transformers can read too."""
        keys = {name: getattr(self, name) for name in self.__slots__}
        keys["image_mean"], keys["image_std"] = list(self.image_mean), list(self.image_std)
        return {
            **keys,
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
        }

    def save(self, folder: Path) -> None:
        """Writes preprocessor_config.json."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (folder / PROCESSOR_FILES[0]).write_text(text, encoding="utf-8")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches, the same for all images: each is fitted to a square first."""
        h, w = self._resized()
        return h // self.patch_size, w // self.patch_size

    @property
    def merged_tokens(self) -> int:
        """Number of merged visual tokens of an image."""
        rows, columns = self.grid
        return rows * columns // self.merge_size**2

    def _resized(self) -> tuple[int, int]:
        """Returns the (height, width) that the square frame is resized to."""
        return smart_resize(
            self.input_size,
            self.input_size,
            factor=self.patch_size * self.merge_size,
            low=self.min_pixels,
            high=self.max_pixels,
        )

    def __call__(self, image: Image.Image, *, fit: FitMode = "squash") -> Patches:
        """Prepares one RGB image of any size."""
        frame = self.frame(image, fit=fit)
        pixels = _normalise(frame, self.image_mean, self.image_std, self.rescale_factor)
        return Patches(self._cut(pixels, frames=self.temporal_patch_size), self.grid)

    def levels(self, image: Image.Image, *, fit: FitMode = "squash") -> NDArray[np.uint8]:
        """Prepares one RGB image of any size, but for what a device does faster.

        Returns:
            uint8 (rows * columns, 3 * patch * patch). With `level_values` in place of the levels,
            and as many equal frames as a patch has, they are the patches of `__call__`.
        """
        return self._cut(self.frame(image, fit=fit), frames=1)

    @property
    def level_values(self) -> NDArray[np.float32]:
        """(3, 256), the value of each level of a channel; equal processors share the array."""
        # They may be lists, which have no hash.
        mean, std = tuple(self.image_mean), tuple(self.image_std)
        return _level_values(mean, std, self.rescale_factor)

    def frame(self, image: Image.Image, *, fit: FitMode = "squash") -> NDArray[np.uint8]:
        """Resizes one RGB image to the network's size: uint8 (H, W, 3)."""
        frame = fit_to_square(image, self.input_size, fit=fit)
        h, w = self._resized()
        # Twice resized, as in the official code: 512 is no multiple of a merged token's 28 pixels.
        if frame.size != (w, h):
            frame = frame.resize((w, h), Image.Resampling.BICUBIC)
        return np.array(frame, dtype=np.uint8)

    def _cut(self, pixels: NDArray[T], *, frames: int) -> NDArray[T]:
        """Cuts (H, W, 3) into flat patches in the order of `Patches.values`."""
        patch, merge = self.patch_size, self.merge_size
        h, w, channels = pixels.shape
        rows, columns = h // patch // merge, w // patch // merge
        cut = pixels.reshape(rows, merge, patch, columns, merge, patch, channels)
        # (rows, columns, merge, merge, channels, frames = 1, patch, patch): merged tokens first.
        cut = cut.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
        # The vision tower takes video: a still image is a clip of equal frames.
        shape = (*cut.shape[:5], frames, patch, patch)
        return np.broadcast_to(cut, shape).reshape(rows * columns * merge * merge, -1)


def _normalise(
    pixels: NDArray[np.uint8], mean: ChannelValues, std: ChannelValues, factor: float
) -> NDArray[np.float32]:
    """(..., 3) -> the same shape."""
    values = pixels.astype(np.float32) * np.float32(factor)
    values -= np.asarray(mean, dtype=np.float32)
    values /= np.asarray(std, dtype=np.float32)
    return values


@lru_cache
def _level_values(mean: ChannelValues, std: ChannelValues, factor: float) -> NDArray[np.float32]:
    levels = np.arange(256, dtype=np.uint8)
    return _normalise(np.stack([levels] * 3, axis=-1), mean, std, factor).T
