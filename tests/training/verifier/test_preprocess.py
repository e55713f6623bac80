from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from tts_verifier.training.verifier.preprocess import DevicePreprocess
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor


def test_images_become_the_patches_that_the_processor_makes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    processor = Processor(input_size=56)
    ours = DevicePreprocess(processor, 128)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    theirs = [processor(Image.fromarray(p)).values for p in pixels]
    one_level = 1 / 255 / 0.26
    np.testing.assert_allclose(ours.numpy(), np.concatenate(theirs), atol=1.1 * one_level)


def test_images_of_the_networks_size_are_only_cut() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), dtype=np.uint8)
    processor = Processor(input_size=56)
    ours = DevicePreprocess(processor)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    theirs = processor(Image.fromarray(pixels[0])).values
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
