"""A random ImageDoctor of a megabyte, from examples/make_checkpoint.py, and its outputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel


def example(name: str = "make_checkpoint") -> ModuleType:
    path = Path(__file__).parent.parent / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def talkative(folder: Path, **options: Any) -> ImageDoctor:
    """Loads one with random weights whose replies, each different, hold heatmap tokens."""
    loaded = ImageDoctor.from_pretrained(str(folder), device="cpu", **options)
    model = loaded.checkpoint.model
    head = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(3))
    head[[model.config.misalignment_token_id, model.config.artifact_token_id]] *= 4
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return loaded


OUTPUT_GRIDS = [(1, 8, 4), (1, 6, 10)]


def outputs_of(model: ImageDoctorModel) -> list[torch.Tensor]:
    """Logits and a map of two images of other, non-square grids, in one padded batch."""
    g = torch.Generator().manual_seed(0)
    image = model.config.image_token_id
    ids = torch.randint(0, 256, (2, 40), generator=g)
    mask = torch.ones(2, 40)
    mask[0, :9] = 0
    for row, (_, h, w) in enumerate(OUTPUT_GRIDS):
        ids[row, 12 : 12 + h * w // 4] = image
    pixels = torch.randn(sum(h * w for _, h, w in OUTPUT_GRIDS), 1176, generator=g)
    with torch.no_grad():
        out = model.eval()(ids, pixels, OUTPUT_GRIDS, mask)
        grid_map = model.heatmap_logits(out.hidden[1, -1:], out.visual[None, 8:], (3, 5))
    assert grid_map.shape == (1, 48, 80)
    return [out.logits[0, 9:], out.logits[1], grid_map]


def all_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
