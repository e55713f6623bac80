"""Which prompt proposes next, and which jobs make up the next batch."""

from tts_verifier.runner.scheduling.prompt_scheduler import PromptScheduler

__all__ = ["PromptScheduler"]
