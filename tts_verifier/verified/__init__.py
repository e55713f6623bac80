"""A diffusers pipeline whose call is a search: it returns the best of its candidates."""

from tts_verifier.verified.custom import search_as
from tts_verifier.verified.pipeline import VerifiedPipeline, wrap

__all__ = ["VerifiedPipeline", "search_as", "wrap"]
