"""The loop over prompts, rounds and batches: propose, generate, verify, log."""

from tts_verifier.runner.entry import execute, run
from tts_verifier.runner.options import RunOptions, SearchOptions
from tts_verifier.runner.prompts import as_prompts, read_prompts
from tts_verifier.runner.result import RunResult
from tts_verifier.runner.setup import RunSetup

__all__ = [
    "RunOptions",
    "RunResult",
    "RunSetup",
    "SearchOptions",
    "as_prompts",
    "execute",
    "read_prompts",
    "run",
]
