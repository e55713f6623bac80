"""ImageDoctor checkpoints: found in a folder or on the hub, loaded, and saved."""

from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    load_model,
)
from tts_verifier.verifiers.imagedoctor.checkpoint.save import save_model

__all__ = ["Checkpoint", "find_checkpoint", "load_checkpoint", "load_model", "save_model"]
