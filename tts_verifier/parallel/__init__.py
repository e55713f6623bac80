"""One run on many processes, GPUs and machines: shards of prompts, and engines that run them."""

from tts_verifier.parallel.engine import WorkerEngine, hand_out, open_engine
from tts_verifier.parallel.interrupts import gentle_interrupts
from tts_verifier.parallel.run import run_parallel

__all__ = [
    "WorkerEngine",
    "gentle_interrupts",
    "hand_out",
    "open_engine",
    "run_parallel",
]
