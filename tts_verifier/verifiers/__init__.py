"""Verifiers score images against prompts; each kind has a folder of its own here.

To write one, copy `examples/own_verifier.py`; `CONTRIBUTING.md` says what it must do.
"""

from tts_verifier.verifiers.load import load_verifier

__all__ = ["load_verifier"]
