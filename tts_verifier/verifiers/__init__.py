"""Verifiers score images against prompts; each kind has a folder of its own here.

To write one, start from `tts_verifier/testing/fakes.py`, whose `FakeVerifier` is the smallest, or
from the template in `CONTRIBUTING.md`.
"""

from tts_verifier.verifiers.load import load_verifier

__all__ = ["load_verifier"]
