"""A tiny ImageDoctor, a tiny data set, and rewards that random weights can earn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tts_verifier.training.cold_start.stages import read_for_training
from tts_verifier.training.grpo import grpo as entry
from tts_verifier.training.grpo.measures import Rewarded
from tts_verifier.training.grpo.prompts import PromptSource
from tts_verifier.training.grpo.rollouts import Group
from tts_verifier.training.grpo.settings import GrpoSettings
from tts_verifier.training.richhf.miniature import make_miniature_richhf
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ratings") / "data"
    make_miniature_richhf(output=str(folder), sizes={"train": 4}, sample_share=0, processes=1)
    return folder


@pytest.fixture
def checkpoint(doctor: Path) -> Checkpoint:
    return read_for_training(doctor)


@pytest.fixture
def settings(ratings: Path) -> GrpoSettings:
    return GrpoSettings(str(ratings), prompts=2, group=3, max_new_tokens=6)


@pytest.fixture
def source(checkpoint: Checkpoint, settings: GrpoSettings) -> PromptSource:
    return PromptSource(checkpoint, settings, seed=0)


class EvenTokens:
    """A stand-in for the rewards: the share of even tokens, which random weights can learn."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.weights = {"even": 1.0}

    def __call__(self, groups: Sequence[Group]) -> Rewarded:
        found = [[np.mean([i % 2 == 0 for i in r.ids]) for r in g.replies] for g in groups]
        terms = {"even": np.array(found).ravel()}
        return Rewarded(torch.tensor(found, dtype=torch.float64), terms, 0)


@pytest.fixture
def even_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "OfficialRewards", EvenTokens)
