"""Fakes and conformance checks for tests of this package and of plug-ins."""

from tts_verifier.testing.checks import check_generator, check_strategy, check_verifier
from tts_verifier.testing.fakes import FakeComparer, FakeGenerator, FakeVerifier

__all__ = [
    "FakeComparer",
    "FakeGenerator",
    "FakeVerifier",
    "check_generator",
    "check_strategy",
    "check_verifier",
]
