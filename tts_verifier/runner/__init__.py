"""The loop over prompts, rounds and batches: propose, generate, verify, log."""

from tts_verifier.runner.loop import Options, execute, run
from tts_verifier.runner.prompts import as_prompts, read_prompts
from tts_verifier.runner.result import RunResult
from tts_verifier.runner.setup import Search

__all__ = ["Options", "RunResult", "Search", "as_prompts", "execute", "read_prompts", "run"]
