from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from tts_verifier.training.miniature.verifier.preprocess import DevicePreprocess


def test_images_become_the_patches_that_the_processor_makes(tiny) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    processor = tiny.checkpoint.processor
    ours = DevicePreprocess(processor)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    theirs = [processor(Image.fromarray(p)).values for p in pixels]
    one_level = 1 / 255 / 0.26
    np.testing.assert_allclose(ours.numpy(), np.concatenate(theirs), atol=1.1 * one_level)
