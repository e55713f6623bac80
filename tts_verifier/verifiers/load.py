"""Loads a verifier by a recipe's name, from a folder, or from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tts_verifier import registry
from tts_verifier.errors import CheckpointError, suggestion
from tts_verifier.interfaces import Verifier
from tts_verifier.loading.regular_files import user_path


def load_verifier(
    name: str | Path, *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> Verifier:
    """Loads a verifier.

    A name that recipes know may bring its checkpoint along: "hpsv2:folder".

    Args:
        name: a name that recipes know, such as "shapes-oracle" or that of a plug-in; or whatever
            `Verifier.from_pretrained` takes: "shapes", a folder, or a hub id. Or an import path:
            `FILE.py:CLASS`, from the working folder, or `PACKAGE.MODULE:CLASS`.
        options: further arguments of its constructor or of `from_pretrained`; `model` is the name
            of a checkpoint, as in recipes.
        device: of a verifier that takes one, if the options do not say; None = its own choice.

    Raises:
        CheckpointError: it is neither a known name nor a checkpoint that can be found.
        InputError: there is no such option, or one is missing.
    """
    given = dict(options or {})
    kind, _, checkpoint = str(name).partition(":")
    # On Windows a path begins with the letter of a drive, which is no verifier's name.
    if checkpoint and kind in registry.names("verifier"):
        return _build(kind, {"model": checkpoint} | given, device)
    # "imagedoctor" is a name of recipes too, but it needs a checkpoint. So without one it is looked
    # up as a checkpoint, and the error then says what a checkpoint may be.
    known = isinstance(name, str) and name in registry.names("verifier")
    if known and (name != "imagedoctor" or "model" in given):
        return _build(str(name), given, device)
    if isinstance(name, str) and registry.is_import_path(name) and not Path(name).exists():
        return _build(name, given, device)
    is_word = isinstance(name, str) and name.replace("-", "_").isidentifier()
    if is_word and not user_path(name).exists():
        # Neither a folder nor a hub id, which has a slash.
        available = [*registry.names("verifier"), "shapes"]
        if name not in available:
            raise CheckpointError(
                "A verifier is 'shapes', a folder, a hub id like 'GYX97/ImageDoctor', or a name "
                f"that recipes know; {name!r} is none of them. {suggestion(str(name), available)}"
            )
    return Verifier.from_pretrained(name, **({"device": device} if device else {}) | given)


def _build(name: str, options: Mapping[str, Any], device: str | None) -> Verifier:
    where_taken = {"device": device} if device else None
    verifier: Verifier = registry.built_by_name("verifier", name, options, where_taken)
    return verifier
