"""Loads a verifier by a recipe's name, from a folder, or from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tts_verifier import registry
from tts_verifier.interfaces import Verifier


def load_verifier(name: str | Path, **options: Any) -> Verifier:
    """Loads a verifier.

    A name that recipes know may bring its checkpoint along: "hpsv2:folder".

    Args:
        name: a name that recipes know, such as "shapes-oracle" or that of a plug-in; or whatever
            `Verifier.from_pretrained` takes: "shapes", a folder, or a hub id.
        **options: arguments of its constructor, or of `ImageDoctor.from_pretrained`.

    Raises:
        CheckpointError: it is neither a known name nor a checkpoint that can be found.
    """
    kind, _, checkpoint = str(name).partition(":")
    # On Windows a path begins with the letter of a drive, which is no verifier's name.
    if checkpoint and kind in registry.names("verifier"):
        judge: Verifier = registry.builder("verifier", kind)(checkpoint, **options)
        return judge
    # "imagedoctor" is a name of recipes too, but it needs a checkpoint. So it is looked up as
    # one, and the error then says what a checkpoint may be.
    if isinstance(name, str) and name != "imagedoctor" and name in registry.names("verifier"):
        verifier: Verifier = registry.builder("verifier", name)(**options)
        return verifier
    return Verifier.from_pretrained(name, **options)
