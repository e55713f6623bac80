"""Any diffusers text-to-image pipeline as a `Generator`; FAMILIES.md says what each can do."""

from tts_verifier.generators.diffusers.generator import DiffusersGenerator

__all__ = ["DiffusersGenerator"]
