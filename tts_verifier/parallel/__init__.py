"""One run on many processes, GPUs and machines: shards of prompts, and engines that run them."""

from tts_verifier.parallel.engine import Engine, hand_out, open_engine

__all__ = ["Engine", "hand_out", "open_engine"]
