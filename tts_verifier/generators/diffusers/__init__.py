"""Any diffusers pipeline as a `Generator`."""

from tts_verifier.generators.diffusers.generator import DiffusersGenerator

__all__ = ["DiffusersGenerator"]
