"""Which prompt proposes next, and which jobs make up the next batch."""

from tts_verifier.runner.scheduling.scheduler import Scheduler

__all__ = ["Scheduler"]
