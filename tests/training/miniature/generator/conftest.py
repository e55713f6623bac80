"""A tiny generator of random weights for the tests of its training."""

import pytest
from tiny_training import GENERATOR_SIZES

from tts_verifier.training.miniature.generator.build import build_pipeline


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return build_pipeline(GENERATOR_SIZES, tmp_path_factory.mktemp("tokenizer"), seed=0)
