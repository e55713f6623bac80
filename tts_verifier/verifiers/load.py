"""Loads a verifier by a recipe's name, from a folder, or from the hub."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tts_verifier import registry
from tts_verifier.errors import InputError
from tts_verifier.interfaces import Verifier


def load_verifier(
    name: str | Path, *, options: Mapping[str, Any] | None = None, device: str | None = None
) -> Verifier:
    """Loads a verifier.

    Args:
        name: a name that recipes know, such as "shapes-oracle" or that of a plug-in; or whatever
            `Verifier.from_pretrained` takes: "shapes", a folder, or a hub id.
        options: further arguments of its constructor or of `from_pretrained`.
        device: of a checkpoint, if the options do not say; None = its own choice.

    Raises:
        CheckpointError: it is neither a known name nor a checkpoint that can be found.
        InputError: there is no such option.
    """
    given = dict(options or {})
    # "imagedoctor" is a name of recipes too, but it needs a checkpoint. So it is looked up as
    # one, and the error then says what a checkpoint may be.
    if isinstance(name, str) and name != "imagedoctor" and name in registry.names("verifier"):
        builder = registry.builder("verifier", name)
        if unknown := sorted(set(given) - set(inspect.signature(builder).parameters)):
            raise InputError(f"The verifier {name!r} has no option {', '.join(unknown)}.")
        verifier: Verifier = builder(**given)
        return verifier
    return Verifier.from_pretrained(name, **({"device": device} if device else {}) | given)
