"""A verifier by its name in recipes, from a folder, or from a hub id."""

from __future__ import annotations

from tts_verifier import registry
from tts_verifier.interfaces import Verifier


def load_verifier(name: str) -> Verifier:
    """Returns a verifier by its name in recipes, or as `Verifier.from_pretrained` loads it."""
    if name in registry.names("verifier") and name != "imagedoctor":
        verifier: Verifier = registry.builder("verifier", name)()
        return verifier
    return Verifier.from_pretrained(name)
