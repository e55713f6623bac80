"""The checkpoint's image preprocessing as a torch module, which runs on the training device."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor


class DevicePreprocess(nn.Module):
    """Turns square uint8 images into patches, as the checkpoint's processor does.

    Resizing is two matrix products with Pillow's own bicubic weights.

    Args:
        processor: of the checkpoint.
        source: side of the images in pixels; None = they have the network's size already.

    Attributes:
        patch: pixels a side of a patch.
        merge: patches a side of a merged token.
        side: merged tokens a side of an image.
    """

    def __init__(self, processor: Processor, source: int | None = None) -> None:
        super().__init__()
        pixels = processor.grid[0] * processor.patch_size
        self.patch, self.merge = processor.patch_size, processor.merge_size
        self.frames = processor.temporal_patch_size
        self.side = pixels // self.patch // self.merge
        self.resize = nn.Buffer(resize_matrix(source or pixels, pixels, Image.Resampling.BICUBIC))
        self.mean = nn.Buffer(torch.tensor(processor.image_mean).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(processor.image_std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocesses images.

        Args:
            pixels: uint8 (B, 3, source, source), sRGB.

        Returns:
            float32 (B * patches, 3 * frames * patch * patch), normalised.
        """
        values = pixels.float()
        if self.resize.shape[0] != self.resize.shape[1]:
            values = (self.resize @ values @ self.resize.T).clamp(0, 255).round()
        values = (values / 255 - self.mean) / self.std
        n, m, p = self.side, self.merge, self.patch
        # Qwen's order of patches: all of one merged token, then the next merged token.
        cut = values.view(len(pixels), 3, n, m, p, n, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        # A still image fills every frame of a temporal patch.
        frames = cut[:, :, :, :, :, :, None].expand(*cut.shape[:6], self.frames, p, p)
        return frames.reshape(len(pixels) * (n * m) ** 2, -1)


def resize_matrix(source: int, target: int, method: Image.Resampling) -> Tensor:
    """Returns Pillow's resampling along one axis as a matrix: float32 (target, source)."""
    identity = Image.fromarray(np.eye(source, dtype=np.float32))
    return torch.from_numpy(np.array(identity.resize((source, target), method)))
