"""A page in the browser: a prompt, a strategy, and the candidates as they are drawn and scored."""

from tts_verifier.demo.entry import launch

__all__ = ["launch"]
