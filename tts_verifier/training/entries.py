"""The entries of `tts-train`: name -> a function whose arguments are the keys of a config.

A config is a YAML file; packaged ones lie in `recipes/training` and are found by their name. Keys,
types and values are checked before anything is loaded, and a mistake names the file's line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import InputError, RecipeError, suggestion
from tts_verifier.loading.regular_files import output_path, user_path
from tts_verifier.recipe.recipe import read_yaml_text
from tts_verifier.recipe.sections import check_keys, check_type
from tts_verifier.recipe.yaml_lines import Document, apply_override, parse_document
from tts_verifier.registry import call, parameters, recipe_folder

ENTRIES: Final[Mapping[str, str]] = {
    "cold-start-1": "tts_verifier.training.cold_start.stages:cold_start_1",
    "cold-start-2": "tts_verifier.training.cold_start.stages:cold_start_2",
    "flow": "tts_verifier.training.flow.flow:flow",
    "grpo": "tts_verifier.training.grpo.grpo:grpo",
    "init-from-qwen": "tts_verifier.training.cold_start.init_from_qwen:init_from_qwen",
    "miniature-richhf": "tts_verifier.training.richhf.miniature:make_miniature_richhf",
}
"""Entry -> "module:function". The module is imported only for its entry."""


def run_entry(entry: str, config: str | Path, overrides: Iterable[str] = ()) -> None:
    """Runs an entry with a config.

    Args:
        entry: one of ENTRIES.
        config: a path, or the name of a packaged config, which may be that of the entry.
        overrides: texts such as `seed=1` or `sizes.train=64`.

    Raises:
        RecipeError: there is no such entry or config, or the config has a mistake.
    """
    document, function = read_config(entry, config, overrides)
    if isinstance(output := document.values.get("output"), str):
        _path_at(output_path, output, document.place("output"))
    # Of the values of all entries, only paths and names of checkpoints may begin so.
    values = {
        key: str(_path_at(user_path, value, document.place(key)))
        if isinstance(value, str) and value.startswith("~")
        else value
        for key, value in document.values.items()
    }
    try:
        call(function, values)
    except InputError as error:
        if error.argument is None:
            raise
        raise RecipeError(f"{document.place(error.argument)}: {error}") from error


def read_config(
    entry: str, config: str | Path, overrides: Iterable[str] = ()
) -> tuple[Document, Any]:
    """Reads the config of an entry and checks its keys and types, and runs nothing.

    Args:
        entry: as for `run_entry`.
        config: likewise.
        overrides: likewise.

    Returns:
        The config, and the function that is the entry.

    Raises:
        RecipeError: as for `run_entry`; values are checked when the entry runs.
    """
    if entry not in ENTRIES:
        raise RecipeError(f"Unknown entry {entry!r}. {suggestion(entry, ENTRIES)}")
    document = _load_config(config)
    for item in overrides:
        apply_override(document, item)
    module, _, name = ENTRIES[entry].partition(":")
    function = getattr(import_module(module), name)
    check_config(document, function)
    return document, function


def check_config(document: Document, function: Any) -> None:
    """Checks the keys and types of a config against the arguments of an entry.

    Raises:
        RecipeError: a key is unknown or missing, or a value has the wrong type.
    """
    signature = parameters(function)
    check_keys(document, document.values, known=signature)
    for key, value in document.values.items():
        check_type(document, (key,), value, kind=signature[key][0])
    required = [k for k, (_, default) in signature.items() if default is inspect.Parameter.empty]
    missing = [key for key in required if key not in document.values]
    if missing:
        raise RecipeError(f"{document.place()}: the config needs {', '.join(missing)}.")


def _load_config(config: str | Path) -> Document:
    path = _path_at(user_path, config, "CONFIG")
    if not (path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1):
        packaged = {p.stem: p for p in sorted((recipe_folder() / "training").glob("*.yaml"))}
        if str(config) not in packaged:
            raise RecipeError(
                f"There is no config file and no packaged config {str(config)!r}. "
                f"{suggestion(str(config), packaged)}"
            )
        path = packaged[str(config)]
    try:
        text = read_yaml_text(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"The config {path} cannot be read: {error}") from error
    return parse_document(text, str(path))


def _path_at(check: Callable[[str | Path], Path], path: str | Path, place: str) -> Path:
    """Returns what `user_path` or `output_path` makes of a path, with the place in its error."""
    try:
        return check(path)
    except InputError as error:
        raise RecipeError(f"{place}: {error}") from error
