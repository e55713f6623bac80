"""Verifiers that apply a rule to what a small network finds in the image."""

from tts_verifier.verifiers.rules.ocr import OCRVerifier

__all__ = ["OCRVerifier"]
