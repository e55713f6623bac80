"""A YAML file -> a checked recipe -> built objects.

A recipe holds constructors' arguments. The sections `generator`, `verifier`, `strategy`, `judge`
and `comparer` have a `name` from the registry and the arguments of its constructor; `objective` and
`budget` have the arguments of theirs. The other keys are `prompts` (a list, or a file beside the
recipe, see `runner.prompts`), `seed`, `detail`, `looks`, `ties`, `near`, `overlap`, `output`, and
`parallel`, which spreads the run over processes and machines (see `parallel_options`). Every
mistake is an error that names the file's line.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import InputError, RecipeError, suggestion
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
from tts_verifier.recipe.yaml_lines import (
    MAX_CHARACTERS,
    Document,
    apply_override,
    changed_leaves,
    leaves_of,
    parse_document,
)
from tts_verifier.registry import plugins_beside, recipe_folder
from tts_verifier.runner.prompts import as_prompts, read_prompts
from tts_verifier.runner.setup import (
    RunSetup,
    check_details,
    check_looks,
    check_needs,
    check_options,
    check_scores,
    known_scores,
)
from tts_verifier.types import Budget, Detail, Prompt

_REQUIRED: Final = ("generator", "verifier", "strategy", "prompts")
_SIMPLE: Final[Mapping[str, Any]] = {
    "seed": int,
    "detail": Detail,
    "looks": int,
    "ties": int,
    "near": float,
    "overlap": bool,
    "output": str,
}
_KEYS: Final = (*ROLES, *UNNAMED, "prompts", "parallel", *_SIMPLE)
_PROMPT_KEYS: Final = ("file", "column", "category")


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
    """`seed`, and `detail`, `looks`, `ties`, `near` and `overlap` where the recipe sets them."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Key of `simple` -> where the recipe or an override sets it."""
    parallel: ParallelOptions | None = None
    """How the run is distributed; None = it is one process."""
    changes: tuple[str, ...] = ()
    """What overrides change, such as "strategy.n: 16 (was 8)"."""

    def resolved(self) -> dict[str, Any]:
        """Returns the recipe with its defaults, as values that YAML and JSON can hold.

        `parallel` is not among them: it decides no image, and may change when a run is continued.
        """
        prompts = [{"id": p.id, "prompt": p.text} for p in self.prompts]
        sections = {name: section.resolved() for name, section in self.sections.items()}
        return {**sections, **self.simple, "prompts": prompts}

    def overview(self, rejudge: Path | None = None) -> str:
        """Returns lines that say what runs, and what overrides change in the recipe's file.

        Args:
            rejudge: the folder of a run whose candidates are verified again; None = new ones are
                drawn.
        """
        names = {name: part.name for name, part in self.sections.items() if part.name is not None}
        count = len(self.prompts)
        what = f"{count} prompt{'s' if count > 1 else ''}, strategy {names.pop('strategy')}"
        if rejudge is not None:
            what = f"the candidates of {rejudge} again"
            del names["generator"]
        parts = ", ".join(f"{section} {name}" for section, name in names.items())
        return "\n".join([what, f"  {parts}", *(f"  {change}" for change in self.changes)])

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
        try:
            setup.check()
        except InputError as error:
            if error.argument is None or error.argument not in self.places:
                raise
            raise RecipeError(f"{self.places[error.argument]}: {error}") from error
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
        if "budget" in sections:
            with sections["budget"].errors_placed():
                check_options(seed=0, judge=None, budget=parts["budget"], overlap=None)
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
    document = _read_document(path)
    before = leaves_of(document.values)
    for item in overrides:
        apply_override(document, item)
    with plugins_beside(path.parent):
        read = read_recipe(document, folder=path.parent, stem=path.stem)
    return replace(read, changes=changed_leaves(before, leaves_of(document.values)))


def verifier_of_recipe(recipe: str | Path) -> Any:
    """Builds the verifier of a recipe; the recipe's objective, if it has one, becomes its own.

    Args:
        recipe: a path. The file needs no other sections: one with `verifier` alone will do.

    Raises:
        RecipeError: there is no such file, or it has a mistake.
        CheckpointError: weights are missing or do not fit.
    """
    path = _user_path(recipe)
    document = _read_document(path)
    with plugins_beside(path.parent):
        return _verifier_of(document)


def _verifier_of(document: Document) -> Any:
    check_keys(document, document.values, known=_KEYS)
    if document.values.get("verifier") is None:
        raise RecipeError(f"{document.place()}: a section 'verifier' is needed, it is missing.")
    verifier = read_section(document, "verifier").build()
    if document.values.get("objective") is not None:
        section = read_section(document, "objective")
        verifier.objective = section.build()
        with section.errors_placed():
            check_scores(verifier.objective, None, known_scores(verifier))
    return verifier


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
            raise RecipeError(f"{document.place(name)}: a recipe needs {name!r}, it is missing.")
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


def read_yaml_text(path: Path) -> str:
    """Returns the text of a recipe or a config, as far as one may be long.

    Raises:
        OSError: there is no such file, or it is no regular file.
        ValueError: it is no UTF-8.
    """
    with io.TextIOWrapper(open_regular(path), "utf-8", newline="") as file:
        # One more than a recipe may have: the parser says that it is too long.
        return file.read(MAX_CHARACTERS + 1)


def _read_document(path: Path) -> Document:
    try:
        text = read_yaml_text(path)
    except (OSError, ValueError) as error:
        hint = _similar_files(path) if isinstance(error, FileNotFoundError) else ""
        raise RecipeError(f"The recipe {path} cannot be read: {error}{hint}") from error
    return parse_document(text, str(path))


def _locate(recipe: str | Path) -> Path:
    path = _user_path(recipe)
    # A file that does not exist, but looks like one, is reported as such when it is read.
    if os.path.lexists(path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    packaged = {p.stem: p for p in sorted(recipe_folder().glob("*.yaml"))}
    if str(recipe) not in packaged:
        raise RecipeError(
            f"There is no recipe file and no packaged recipe {str(recipe)!r}. "
            f"{suggestion(str(recipe), packaged)}"
        )
    return packaged[str(recipe)]


def _similar_files(path: Path) -> str:
    """Returns a hint at recipes with similar names in the folder of a file that does not exist."""
    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")]
    except OSError:
        names = []
    near = get_close_matches(path.name, names, n=3, cutoff=0.7)
    if not near and (recipe_folder() / f"{path.stem}.yaml").is_file():
        return f". A recipe of the package needs no path: {path.stem}"
    return f". Did you mean {' or '.join(str(path.parent / n) for n in near)}?" if near else ""


def _user_path(path: str | Path, place: str = "") -> Path:
    try:
        return user_path(path)
    except InputError as error:
        raise RecipeError(f"{place}: {error}" if place else str(error)) from error


def prompts_of_recipe(value: object, folder: Path) -> tuple[Prompt, ...]:
    """Returns the prompts that a recipe gives: a list, a file, or a file with its columns.

    Args:
        value: the recipe's `prompts`; a mapping has `file` and perhaps `column` and `category`.
        folder: what the path of a file is relative to; `~` is the home folder.

    Raises:
        InputError: the value is none of these, or its prompts cannot be used.
    """
    if isinstance(value, str):
        value = {"file": value}
    if isinstance(value, list):
        return as_prompts(value)
    named = isinstance(value, Mapping) and "file" in value and set(value) <= set(_PROMPT_KEYS)
    if not isinstance(value, Mapping) or not named:
        raise InputError(
            "prompts must be a list or a .txt file or a table, or have the keys "
            f"{', '.join(_PROMPT_KEYS)}, got {value!r:.200}."
        )
    wrong = [name for name in value if not isinstance(value[name], str)]
    if wrong:
        raise InputError(f"prompts.{wrong[0]} must be a text, got {value[wrong[0]]!r:.80}.")
    path = folder / user_path(value["file"])
    return read_prompts(path, column=value.get("column"), category=value.get("category"))


def _prompts(document: Document, folder: Path) -> tuple[Prompt, ...]:
    value, place = document.values["prompts"], document.place("prompts")
    # Whoever types an override means the folder in which they type it.
    parent = Path() if place.startswith("override") else folder
    try:
        return prompts_of_recipe(value, parent)
    except InputError as error:
        raise RecipeError(f"{place}: {error}") from error
