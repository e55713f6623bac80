"""Images as the model takes them, and the way back from the model's frame to the image."""

from tts_verifier.verifiers.imagedoctor.image.letterbox import FitMode, FrameMapping, fit_to_square
from tts_verifier.verifiers.imagedoctor.image.preprocess import Patches, Processor

__all__ = ["FitMode", "FrameMapping", "Patches", "Processor", "fit_to_square"]
