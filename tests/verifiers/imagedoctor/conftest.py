"""Models of random weights: the golden one of the official sizes, and a tiny one to run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from golden_numbers import GOLDEN
from tiny_engine import EOS
from tiny_imagedoctor import example

from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel


@pytest.fixture(scope="module")
def recipes() -> Iterator[SimpleNamespace]:
    """The golden folder's own weights.py and inputs.py."""
    sys.path.insert(0, str(GOLDEN))
    import inputs
    import weights

    yield SimpleNamespace(
        fill=weights.fill, config=inputs.CONFIG, samples=[inputs.sample(0), inputs.sample(1)]
    )
    sys.path.remove(str(GOLDEN))
    del sys.modules["inputs"], sys.modules["weights"]


@pytest.fixture(scope="module")
def official(recipes: SimpleNamespace) -> ImageDoctorModel:
    built = ImageDoctorModel(ImageDoctorConfig.from_dict(recipes.config)).eval()
    recipes.fill(built.state_dict())
    return built


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageDoctorModel:
    """Random weights whose replies hold heatmap tokens and end at different lengths."""
    make = example()
    folder = tmp_path_factory.mktemp("tiny")
    make.make(folder)
    built = load_model(folder).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(3)
    head = torch.randn(built.lm_head.weight.shape, generator=g)
    config = built.config
    for token, gain in (
        (config.misalignment_token_id, 2.5),
        (config.artifact_token_id, 2.5),
        (EOS, 2.2),
    ):
        head[token] *= gain
    built.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return built
