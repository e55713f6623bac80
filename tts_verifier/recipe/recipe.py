"""A YAML file -> a checked recipe -> built objects.

A recipe holds constructors' arguments. The sections `generator`, `verifier`, `strategy` and
`judge` have a `name` from the registry and the arguments of its constructor; `objective` and
`budget` have the arguments of theirs. The other keys are `prompts` (a list, or a file beside the
recipe, see `runner.prompts`), `seed`, `detail`, `looks`, `overlap`, `output`, and `parallel`, which
spreads the run over processes and machines (see `parallel_options`). Every mistake is
an error that names the file's line.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import InputError, RecipeError
from tts_verifier.loading.regular_files import open_regular, user_path
from tts_verifier.recipe.parallel_options import ParallelOptions
from tts_verifier.recipe.sections import (
    ROLES,
    UNNAMED,
    Section,
    check_keys,
    check_type,
    read_section,
)
from tts_verifier.recipe.yaml_lines import MAX_CHARACTERS, Document, apply_override, parse_document
from tts_verifier.runner.prompts import prompts_of_recipe
from tts_verifier.runner.setup import (
    RunSetup,
    check_details,
    check_looks,
    check_needs,
    check_scores,
    known_scores,
)
from tts_verifier.types import Budget, Detail, Prompt

_PACKAGE: Final = Path(__file__).parents[1]
_REQUIRED: Final = ("generator", "verifier", "strategy", "prompts")
_SIMPLE: Final[Mapping[str, Any]] = {
    "seed": int,
    "detail": Detail,
    "looks": int,
    "overlap": bool,
    "output": str,
}
_KEYS: Final = (*ROLES, *UNNAMED, "prompts", "parallel", *_SIMPLE)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe whose keys and types are right; nothing heavy is loaded yet."""

    sections: Mapping[str, Section]
    """Sections by name."""
    prompts: tuple[Prompt, ...]
    """At least one; ids are unique."""
    output: Path
    """The run folder."""
    simple: Mapping[str, Any] = field(default_factory=dict)
    """`seed`, and `detail`, `looks` and `overlap` where the recipe sets them."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Key of `simple` -> where the recipe or an override sets it."""
    parallel: ParallelOptions | None = None
    """How the run is distributed; None = it is one process."""

    def resolved(self) -> dict[str, Any]:
        """Returns the recipe with its defaults, as values that YAML and JSON can hold.

        `parallel` is not among them: it decides no image, and may change when a run is continued.
        """
        prompts = [{"id": p.id, "prompt": p.text} for p in self.prompts]
        sections = {name: section.resolved() for name, section in self.sections.items()}
        return {**sections, **self.simple, "prompts": prompts}

    def build(self, **replacements: Any) -> RunSetup:
        """Builds the object of every section that has no replacement.

        Args:
            replacements: section's name -> an object to use in place of what the section describes.

        Raises:
            RecipeError: a constructor refuses a value, or the objective or the strategy names a
                score that the verifier does not give, or `looks` does not fit the run.
            UnsupportedError: generator or verifier cannot serve the strategy. This is checked
                before any weights are loaded, if their classes say what they support.
            CheckpointError: weights are missing or do not fit.
        """
        # Parts without weights come first: a mistake in one of them is then reported at once.
        parts = self.check(**replacements)
        heavy = [name for name in self.sections if name not in parts]
        parts |= {name: self.sections[name].build() for name in heavy}
        self._check_scores(parts, parts["verifier"])
        setup = RunSetup(**parts, **self.simple)
        setup.check()
        return setup

    def check(self, **replacements: Any) -> dict[str, Any]:
        """Builds the parts without weights, and checks what can be checked without the others.

        Args:
            replacements: as for `build`.

        Returns:
            The replacements and these parts, by section.

        Raises:
            RecipeError, UnsupportedError: as for `build`.
        """
        light = ("strategy", *UNNAMED)
        sections = {n: section for n, section in self.sections.items() if n not in replacements}
        parts = replacements | {name: sections[name].build() for name in light if name in sections}
        generator = replacements.get("generator", self.sections["generator"].builder)
        # The builder may be a function, or a class whose `supports` depends on the weights.
        if isinstance(getattr(generator, "supports", None), frozenset):
            check_needs(parts["strategy"], generator)
        verifier = replacements.get("verifier", self.sections["verifier"].builder)
        self._check_scores(parts, verifier)
        self._check_details(parts, verifier)
        return parts

    def _check_scores(self, parts: Mapping[str, Any], verifier: Any) -> None:
        """Raises RecipeError when a part names a score that the verifier does not give."""
        known = known_scores(verifier)
        if "objective" in parts and "objective" in self.sections:
            with self.sections["objective"].errors_placed():
                check_scores(parts["objective"], None, known)
        with self.sections["strategy"].errors_placed():
            check_scores(None, parts["strategy"], known)

    def _check_details(self, parts: Mapping[str, Any], verifier: Any) -> None:
        """Raises RecipeError when the verifier lacks a detail that the run needs."""
        check_details(parts["strategy"], verifier)
        try:
            check_looks(
                self.simple.get("looks", 0),
                detail=self.simple.get("detail"),
                strategy=parts["strategy"],
                verifier=verifier,
                budget=parts.get("budget", Budget()),
            )
        except InputError as error:
            raise RecipeError(f"{self.places.get('looks', 'looks')}: {error}") from error


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe file, or a packaged recipe by its bare name.

    Args:
        recipe: a path, or a name such as "bestofn".
        overrides: texts such as `strategy.n=16`. If an override names a file of prompts, its path
            is relative to the working folder; if the recipe does, to the recipe's folder.

    Raises:
        RecipeError: there is no such recipe, or it has a mistake.
    """
    path = _locate(recipe)
    try:
        text = read_yaml_text(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}") from error
    document = parse_document(text, str(path))
    for item in overrides:
        apply_override(document, item)
    return read_recipe(document, folder=path.parent, stem=path.stem)


def read_recipe(document: Document, *, folder: Path, stem: str) -> Recipe:
    """Checks a document.

    Args:
        document: from `parse_document`.
        folder: where the files are that the recipe names.
        stem: names the run folder `runs/STEM` where the recipe has no `output`.

    Raises:
        RecipeError: the document has a mistake.
    """
    values = document.values
    check_keys(document, values, known=_KEYS)
    for name in _REQUIRED:
        if values.get(name) is None:
            raise RecipeError(f"{document.place()}: a recipe needs {name!r}, it is missing.")
    sections = {
        name: read_section(document, name)
        for name in (*ROLES, *UNNAMED)
        if values.get(name) is not None
    }
    simple = {name: values[name] for name in _SIMPLE if name in values}
    for name, value in simple.items():
        check_type(document, (name,), value, kind=_SIMPLE[name])
    output = _user_path(simple.pop("output", f"runs/{stem}"), document.place("output"))
    places = {name: document.place(name) for name in simple}
    parallel = None
    if values.get("parallel") is not None:
        parallel = read_section(document, "parallel").build()
    prompts = _prompts(document, folder)
    return Recipe(sections, prompts, output, {"seed": 0, **simple}, places, parallel)


def recipe_folder(package: Path = _PACKAGE) -> Path:
    """Returns the folder of the packaged recipes.

    A wheel holds them inside the package; a checkout and an editable install, beside it.
    """
    packed = package / "recipes"
    return packed if packed.is_dir() else package.parent / "recipes"


def read_yaml_text(path: Path) -> str:
    """Returns the text of a recipe or a config, as far as one may be long.

    Raises:
        OSError: there is no such file, or it is no regular file.
        ValueError: it is no UTF-8.
    """
    with io.TextIOWrapper(open_regular(path), "utf-8", newline="") as file:
        # One more than a recipe may have: the parser says that it is too long.
        return file.read(MAX_CHARACTERS + 1)


def _locate(recipe: str | Path) -> Path:
    path = _user_path(recipe)
    # A file that does not exist, but looks like one, is reported as such when it is read.
    if os.path.lexists(path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    packaged = {p.stem: p for p in sorted(recipe_folder().glob("*.yaml"))}
    if str(recipe) not in packaged:
        raise RecipeError(
            f"There is no recipe file and no packaged recipe {str(recipe)!r}. Available: "
            f"{', '.join(packaged) or 'none'}."
        )
    return packaged[str(recipe)]


def _user_path(path: str | Path, place: str = "") -> Path:
    try:
        return user_path(path)
    except InputError as error:
        raise RecipeError(f"{place}: {error}" if place else str(error)) from error


def _prompts(document: Document, folder: Path) -> tuple[Prompt, ...]:
    value, place = document.values["prompts"], document.place("prompts")
    # Whoever types an override means the folder in which they type it.
    parent = Path() if place.startswith("override") else folder
    try:
        return prompts_of_recipe(value, parent)
    except InputError as error:
        raise RecipeError(f"{place}: {error}") from error
