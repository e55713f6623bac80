"""Loads a verifier by a recipe's name, from a table, from a folder, or from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tts_verifier import registry
from tts_verifier.errors import InputError, RecipeError
from tts_verifier.interfaces import Verifier


def load_verifier(name: str | Path) -> Verifier:
    """Loads a verifier.

    Args:
        name: a name that recipes know, such as "shapes-oracle" or that of a plug-in; or whatever
            `Verifier.from_pretrained` takes: "shapes", a folder, or a hub id.

    Raises:
        CheckpointError: it is neither a known name nor a checkpoint that can be found.
    """
    # "imagedoctor" is a name of recipes too, but it needs a checkpoint. So it is looked up as
    # one, and the error then says what a checkpoint may be.
    if isinstance(name, str) and name != "imagedoctor" and name in registry.names("verifier"):
        verifier: Verifier = registry.builder("verifier", name)()
        return verifier
    return Verifier.from_pretrained(name)


def verifier_of_table(table: Mapping[str, Any]) -> Verifier:
    """Builds a verifier from a table like a recipe's section.

    Args:
        table: `name`, one that recipes know, and the arguments of its builder; the checkpoint of a
            `from_pretrained` is `model`.

    Raises:
        InputError: there is no such name, or its builder refuses an argument.
        CheckpointError: weights are missing or do not fit.
    """
    values = dict(table)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"a verifier needs a 'name' beside its arguments, got {table!r:.200}.")
    try:
        build = registry.builder("verifier", name)
    except RecipeError as error:
        raise InputError(str(error), argument="name") from error
    named_model = getattr(build, "__name__", "") == "from_pretrained" and "model" in values
    positional = [values.pop("model")] if named_model else []
    try:
        verifier: Verifier = build(*positional, **values)
    except TypeError as error:
        raise InputError(f"{name!r} cannot be built: {error}.") from error
    return verifier
