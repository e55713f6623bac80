"""Dimensions of miniature models that train within seconds, for the tests of training."""

from tts_verifier.training.miniature.generator.config import GeneratorSizes, GeneratorTraining
from tts_verifier.training.miniature.verifier.config import VerifierSizes

GENERATOR_SIZES = GeneratorSizes((8, 8, 8, 8), 4, (1, 32), (1, 32), depth=2, heads=1)
GENERATOR_TRAINING = GeneratorTraining(4, 64, 1e-3, 8, 1e-3, 8, 1e-3, workers=0, ema_decay=0.9)
VERIFIER_SIZES = VerifierSizes(
    input_size=56,
    vision_depth=1,
    vision_width=32,
    vision_heads=2,
    vision_mlp=32,
    depth=1,
    width=32,
    heads=2,
    kv_heads=1,
    mlp=32,
    head_width=16,
    head_mlp=16,
    stem=(16, 8),
    stages=(8, 8, 8, 8),
)
