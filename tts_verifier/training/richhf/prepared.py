"""Rated pictures at the size of a network, in a new order in every epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tts_verifier.evaluation.rated import RatedPicture
from tts_verifier.identity import seed_for
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.heatmap_head import UPSCALE

MAP_NAMES: Final = ("misalignment", "artifact")
"""In the order of a row's maps."""


class PreparedPictures:
    """The pictures of a split, prepared when they are used, or once before.

    Args:
        pictures: of the split.
        processor: of the checkpoint.
        seed: decides the orders.
        purpose: of the orders, see `seed_for`.
        with_maps: whether maps are needed.
        in_memory: decodes every picture and map now, and keeps them.
    """

    def __init__(
        self,
        pictures: Sequence[RatedPicture],
        processor: Processor,
        *,
        seed: int,
        purpose: str,
        with_maps: bool,
        in_memory: bool = False,
    ) -> None:
        self.pictures, self._processor = pictures, processor
        self._seed, self._purpose = seed, purpose
        self._map_size = map_size(processor)
        self._order: tuple[int, list[int]] = (-1, [])
        self._kept: dict[str, tuple[Tensor, Tensor | None]] = {}
        if in_memory:
            with ThreadPoolExecutor() as pool:
                made = pool.map(lambda p: self.tensors(p, with_maps=with_maps), pictures)
                self._kept = {p.name: m for p, m in zip(pictures, made, strict=True)}

    def at(self, place: int) -> RatedPicture:
        """Returns the picture at a place of the endless sequence of all epochs."""
        epoch, index = divmod(place, len(self.pictures))
        if self._order[0] != epoch:
            order = list(range(len(self.pictures)))
            random.Random(seed_for(self._seed, "order", epoch, self._purpose)).shuffle(order)
            self._order = (epoch, order)
        return self.pictures[self._order[1][index]]

    def tensors(self, picture: RatedPicture, *, with_maps: bool) -> tuple[Tensor, Tensor | None]:
        """Returns the pixels, uint8 (3, side, side), and the maps, uint8 (2, H, W), or None."""
        if (kept := self._kept.get(picture.name)) is not None:
            return kept
        frame = self._processor.frame(picture.image())
        pixels = torch.from_numpy(frame).permute(2, 0, 1).contiguous()
        if not with_maps:
            return pixels, None
        maps = torch.from_numpy(np.stack([picture.maps[name] for name in MAP_NAMES]))
        return pixels, resize_maps(maps[None], self._map_size)[0]


def map_size(processor: Processor) -> tuple[int, int]:
    """Returns (rows, columns) of the heatmaps that a checkpoint gives."""
    rows, columns = processor.grid
    return UPSCALE * rows // processor.merge_size, UPSCALE * columns // processor.merge_size


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps (N, 2, H, W), uint8, by linear interpolation, as the official code does."""
    resized = interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)
    return resized.round().to(torch.uint8)
