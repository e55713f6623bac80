"""A YAML file -> a checked recipe -> built objects.

A recipe is constructors' arguments: the sections `generator`, `verifier`, `strategy` and
`judge` hold a `name` of the registry and what its constructor takes, `objective` and
`budget` what theirs take; then `prompts` (a list, or a .txt or .jsonl file beside the
recipe), `seed`, `detail`, `overlap` and `output`. Every mistake is an error with the file's
line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from pathlib import Path
from typing import Any, Final

import yaml

from tts_verifier import registry
from tts_verifier.analysis.contact_sheet import write_chosen
from tts_verifier.choice.objective import Objective
from tts_verifier.choice.summary import Summary, as_text, as_values, summarise
from tts_verifier.errors import InputError, RecipeError
from tts_verifier.recipe.rejudge import Proposed, Recorded
from tts_verifier.recipe.signatures import call, describe, fits, parameters
from tts_verifier.recipe.yaml_lines import Document, override, parse
from tts_verifier.runner import execute
from tts_verifier.runner.progress import Progress
from tts_verifier.runner.prompts import as_prompts, read_prompts
from tts_verifier.runner.setup import RunSetup, check_needs
from tts_verifier.types import Budget, Detail, Prompt

ROLES: Final = {
    "generator": "generator",
    "verifier": "verifier",
    "judge": "verifier",
    "strategy": "strategy",
}
"""Section -> role in the registry."""

_REQUIRED: Final = ("generator", "verifier", "strategy", "prompts")
_SIMPLE: Final[Mapping[str, Any]] = {
    "seed": int,
    "detail": Detail,
    "overlap": bool,
    "output": str,
}
_KEYS: Final = (*ROLES, "objective", "budget", "prompts", *_SIMPLE)


@dataclass(frozen=True, slots=True)
class Section:
    """One object to build: what builds it, with which values, and where each was said."""

    builder: Callable[..., Any]
    values: Mapping[str, Any]
    place: str
    places: Mapping[str, str]
    name: str | None = None

    def build(self) -> Any:
        """Calls the builder; its InputError becomes a RecipeError with the place."""
        try:
            return call(self.builder, self.values)
        except InputError as error:
            # A constructor's message starts with the argument that it refuses.
            culprit = str(error).split(maxsplit=1)[0]
            raise RecipeError(f"{self.places.get(culprit, self.place)}: {error}") from error

    def resolved(self) -> dict[str, Any]:
        """Returns the values with the defaults, as far as they are plain."""
        plain = (str, int, float, bool, type(None))
        defaults = {n: d for n, (_, d) in parameters(self.builder).items() if isinstance(d, plain)}
        named = {} if self.name is None else {"name": self.name}
        return {**named, **defaults, **self.values}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe whose keys and types are right; nothing heavy is loaded yet."""

    sections: Mapping[str, Section]
    prompts: tuple[Prompt, ...]
    output: Path
    simple: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self) -> dict[str, Any]:
        """Returns the recipe with its defaults as plain values."""
        prompts = [{"id": p.id, "prompt": p.text} for p in self.prompts]
        sections = {name: section.resolved() for name, section in self.sections.items()}
        return {**sections, **self.simple, "prompts": prompts}

    def build(self, **given: Any) -> RunSetup:
        """Builds all objects, the light ones first, but for those that are given by section.

        Raises:
            RecipeError: a constructor refuses a value.
            UnsupportedError: the generator cannot draw what the strategy needs; said before
                weights load where the generator's class tells.
            CheckpointError: weights are missing or do not fit.
        """
        light = ("strategy", "objective", "budget")
        todo = {name: part for name, part in self.sections.items() if name not in given}
        parts = given | {n: todo[n].build() for n in light if n in todo}
        generator = given.get("generator", self.sections["generator"].builder)
        supports = getattr(generator, "supports", None)
        if isinstance(supports, frozenset):
            check_needs(parts["strategy"], generator)
        heavy = [name for name in todo if name not in parts]
        parts |= {name: self.sections[name].build() for name in heavy}
        search = RunSetup(**parts, **self.simple)
        search.check()
        return search


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe file, or a packaged one by its bare name.

    Args:
        recipe: a path, or a name such as "bestofn".
        overrides: `strategy.n=16` and the like; a file of prompts named here is looked for
            in the working folder, one named in the recipe beside it.

    Raises:
        RecipeError: there is no such recipe, or it has a mistake.
    """
    path = _locate(recipe)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}") from error
    document = parse(text, str(path))
    for item in overrides:
        override(document, item)
    return read(document, folder=path.parent, stem=path.stem)


def read(document: Document, *, folder: Path, stem: str) -> Recipe:
    """Checks a document; `folder` is where its files are, `stem` names the default output."""
    values = document.values
    _check_keys(document, values, known=_KEYS)
    for name in _REQUIRED:
        if values.get(name) is None:
            raise RecipeError(f"{document.place()}: a recipe needs {name!r}, it is missing.")
    sections = {}
    for name in (*ROLES, "objective", "budget"):
        if values.get(name) is not None:
            sections[name] = _section(document, name)
    simple = {name: values[name] for name in _SIMPLE if name in values}
    for name, value in simple.items():
        _check_type(document, (name,), value, kind=_SIMPLE[name])
    output = Path(simple.pop("output", f"runs/{stem}"))
    return Recipe(sections, _prompts(document, folder), output, {"seed": 0, **simple})


def recipe_folder() -> Path:
    """Returns where the packaged recipes are: in the wheel, or in the checkout."""
    package = Path(__file__).parents[1]
    packed = package / "recipes"
    return packed if packed.is_dir() else package.parent / "recipes"


def _locate(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    known = {p.stem: p for p in sorted(recipe_folder().glob("*.yaml"))}
    if str(recipe) not in known:
        raise RecipeError(
            f"There is no recipe file and no packaged recipe {str(recipe)!r}. Available: "
            f"{', '.join(known) or 'none'}."
        )
    return known[str(recipe)]


def _section(document: Document, name: str) -> Section:
    values, place = document.values[name], document.place(name)
    if not isinstance(values, dict):
        raise RecipeError(f"{place}: {name} must be a table of keys, got {values!r}.")
    if name not in ROLES:
        builder: Callable[..., Any] = Objective if name == "objective" else Budget
        title = None
    else:
        title = values.get("name")
        if not isinstance(title, str):
            known = ", ".join(sorted(registry.names(ROLES[name])))
            raise RecipeError(f"{place}: {name} needs a 'name', one of {known}.")
        try:
            builder = registry.builder(ROLES[name], title)
        except RecipeError as error:
            raise RecipeError(f"{document.place(name, 'name')}: {error}") from error
    known_keys = parameters(builder)
    given = {key: value for key, value in values.items() if title is None or key != "name"}
    _check_keys(document, given, known=known_keys, section=name)
    for key, value in given.items():
        _check_type(document, (name, key), value, kind=known_keys[key][0])
    missing = [
        k for k, (_, default) in known_keys.items() if default is Parameter.empty and k not in given
    ]
    if missing:
        raise RecipeError(f"{place}: {name} needs {', '.join(missing)}.")
    places = {key: document.place(name, key) for key in given}
    return Section(builder, given, place, places, title)


def _prompts(document: Document, folder: Path) -> tuple[Prompt, ...]:
    value, place = document.values["prompts"], document.place("prompts")
    try:
        if isinstance(value, str):
            here = Path() if place.startswith("override") else folder
            return read_prompts(here / value)
        if not isinstance(value, list):
            raise InputError(f"prompts must be a list or a .txt or .jsonl file, got {value!r}.")
        return as_prompts(value)
    except InputError as error:
        raise RecipeError(f"{place}: {error}") from error


def _check_keys(
    document: Document, values: Mapping[str, Any], *, known: Iterable[str], section: str = ""
) -> None:
    allowed = dict.fromkeys(known)
    for key in values:
        if key not in allowed:
            path = (section, key) if section else (key,)
            hint = registry.suggestion(key, allowed)
            raise RecipeError(f"{document.place(*path)}: unknown key {'.'.join(path)!r}. {hint}")


def _check_type(document: Document, path: tuple[str, ...], value: object, *, kind: Any) -> None:
    if not fits(value, kind):
        raise RecipeError(
            f"{document.place(*path)}: {'.'.join(path)} must be {describe(kind)}, got {value!r}."
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a recipe's run ended with: its summary, and the folder with all the rest."""

    summary: Summary
    folder: Path

    def __str__(self) -> str:
        """Returns what a terminal shows."""
        sheet = self.folder / "chosen.png"
        return f"{as_text(self.summary)}\nchosen pictures: {sheet}\nlog: {self.folder}"

    def as_json(self) -> str:
        """Returns one line of JSON."""
        values = {"event": "result", "folder": str(self.folder), **as_values(self.summary)}
        return json.dumps(values, ensure_ascii=False)


def run_recipe(
    recipe: Recipe,
    *,
    output: Path | None = None,
    rejudge: Path | None = None,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> Outcome:
    """Runs a recipe; the run folder gets the log, the chosen pictures and a sheet of them.

    Args:
        recipe: what to run.
        output: run folder instead of the recipe's.
        rejudge: a run folder whose candidates the recipe's verifier, judge and objective
            judge again, in place of the recipe's generator, strategy, budget and prompts.
        say: what is called with the resolved recipe, for the reader.
        progress: what shows how it goes; None = nothing.
    """
    resolved, folder, prompts = recipe.resolved(), output or recipe.output, recipe.prompts
    given: dict[str, Any] = {}
    if rejudge is not None:
        recorded = Recorded(rejudge, folder)
        given = {"generator": recorded, "strategy": Proposed(recorded.trials), "budget": Budget()}
        judging = ("verifier", "judge", "objective", "detail")
        resolved = {name: resolved[name] for name in judging if name in resolved}
        resolved["rejudge"] = str(recorded.place)
        prompts = recorded.prompts
    say(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    search = recipe.build(**given)
    result = execute(search, prompts, folder=folder, progress=progress, recipe=resolved)
    summary = summarise(result.summaries)
    write_chosen(summary.prompts, folder)
    return Outcome(summary, folder)
