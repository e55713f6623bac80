from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_imagedoctor import noise
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor


@pytest.mark.parametrize("side", [64, 112, 196, 300, 512])
def test_patches_are_those_of_transformers(side: int) -> None:
    stock = Qwen2VLImageProcessorPil()
    image = noise(side, side)
    expected = stock(images=[image], return_tensors="np")
    patches = Processor(input_size=side, max_pixels=stock.size["longest_edge"])(image)
    assert [1, *patches.grid] == expected["image_grid_thw"][0].tolist()
    np.testing.assert_allclose(patches.values, expected["pixel_values"], atol=2e-6)
    assert patches.values.dtype == np.float32


@pytest.mark.parametrize("side", [112, 300])
def test_levels_stand_for_the_values_of_the_patches(side: int) -> None:
    processor = Processor(input_size=side, image_std=(0.2, 0.3, 0.4))
    image = noise(90, 70)
    levels, patches = processor.levels(image), processor(image)
    values = processor.level_values[np.arange(3).repeat(196), levels].reshape(-1, 3, 196)
    frames = patches.values.reshape(-1, 3, 2, 196)
    assert (frames == values[:, :, None]).all()


def test_channels_may_be_lists() -> None:
    processor = replace(Processor(), image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.25, 0.125])
    assert processor.level_values[:, 255].tolist() == [1, 2, 4]


def test_the_official_square_makes_18_by_18_merged_tokens() -> None:
    assert Processor()(noise(300, 200)).grid == Processor().grid == (36, 36)
    assert Processor().merged_tokens == 18 * 18


def test_a_processor_is_read_in_every_generations_form(tmp_path) -> None:
    config = ImageDoctorConfig.from_dict({})
    Processor(input_size=196).save(tmp_path)
    assert Processor.from_folder(tmp_path, config) == Processor(input_size=196)
    assert Processor.from_dict({"min_pixels": 5, "max_pixels": 7}).max_pixels == 7
    newer = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "max_pixels": None}
    assert Processor.from_dict(newer) == Processor()


def test_transformers_reads_what_we_write(tmp_path) -> None:
    Processor(max_pixels=40_000).save(tmp_path)
    stock = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert stock.size["longest_edge"] == 40_000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("other.json", "{}", r"has no preprocessor_config.json"),
        ("preprocessor_config.json", "[", r"must describe an image processor"),
        ("preprocessor_config.json", '{"patch_size": 16}', r"patch_size is 16 and 14"),
        ("preprocessor_config.json", '{"merge_size": 4}', r"merge_size 4 must equal"),
    ],
)
def test_a_processor_that_does_not_fit_is_an_error(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Processor.from_folder(tmp_path, ImageDoctorConfig.from_dict({}))
