"""A tiny Stable Diffusion 3 pipeline, and the same one wrapped."""

import pytest
from tiny_pipelines import sd3

from tts_verifier import wrap
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeVerifier


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def verified(pipe):
    return wrap(pipe, FakeVerifier(), strategy=BestOfN(3))
