"""What all training code shares: the loop, averaged weights, CUDA graphs, replay pools."""

from tts_verifier.training.common.cuda_graph import CapturedStep, mixed_precision
from tts_verifier.training.common.loop import (
    NamedLosses,
    Periodic,
    WeightAverage,
    learning_rate,
    train_for,
)
from tts_verifier.training.common.replay_pool import ReplayPool

__all__ = [
    "CapturedStep",
    "NamedLosses",
    "Periodic",
    "ReplayPool",
    "WeightAverage",
    "learning_rate",
    "mixed_precision",
    "train_for",
]
