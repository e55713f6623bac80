"""Maps the names that recipes use to builders of generators, verifiers and strategies; calls these.

A module is imported only when one of its builders is requested. Python users pass instances; only
recipes and commands use names. Third parties add names through the entry-point group
`tts_verifier.plugins`, as `generator.mine`, `verifier.mine`, `comparer.mine` or `strategy.mine`.
An import path needs no name: `mine.py:MyStrategy` or `package.module:MyStrategy`.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any, Final, get_args, get_type_hints

from tts_verifier.errors import InputError, RecipeError, TTSError, suggestion
from tts_verifier.registry.signatures import UNCHECKED, check_arguments

_PACKAGE: Final = Path(__file__).parents[1]

GROUP: Final = "tts_verifier.plugins"
"""The entry-point group of plug-ins."""

BUILT_IN: Final[Mapping[str, Mapping[str, str]]] = {
    "generator": {
        "simulated": "tts_verifier.shapes.simulated:SimulatedGenerator",
        "diffusers": "tts_verifier.generators.diffusers:DiffusersGenerator",
        "fake": "tts_verifier.testing:FakeGenerator",
    },
    "verifier": {
        "ensemble": "tts_verifier.verifiers.ensemble:Ensemble",
        "imagedoctor": "tts_verifier.verifiers.imagedoctor:ImageDoctor.from_pretrained",
        "hpsv3": "tts_verifier.verifiers.vision_language.hpsv3:HPSv3",
        "openai": "tts_verifier.verifiers.openai:OpenAIVerifier",
        "soft-tifa": "tts_verifier.verifiers.vision_language.soft_tifa:SoftTIFA",
        "unifiedreward": "tts_verifier.verifiers.vision_language.unifiedreward:UnifiedReward",
        "visualquality-r1": "tts_verifier.verifiers.vision_language.unifiedreward:VisualQuality",
        "vqascore": "tts_verifier.verifiers.vision_language.vqascore:VQAScore",
        "remote": "tts_verifier.verifiers.remote:Remote",
        "ocr": "tts_verifier.verifiers.rules.ocr:OCRVerifier",
        "shapes-judge": "tts_verifier.shapes.verifiers:JudgeVerifier",
        "shapes-oracle": "tts_verifier.shapes.verifiers:OracleVerifier",
        "clip": "tts_verifier.verifiers.contrastive.clip:ClipScore",
        "pickscore": "tts_verifier.verifiers.contrastive.clip:PickScore",
        "hpsv2": "tts_verifier.verifiers.contrastive.hpsv2:HPSv2",
        "imagereward": "tts_verifier.verifiers.contrastive.imagereward:ImageReward",
        "aesthetic": "tts_verifier.verifiers.contrastive.aesthetic:Aesthetic",
        "detector": "tts_verifier.verifiers.rules.detector:DetectorVerifier",
        "fake": "tts_verifier.testing:FakeVerifier",
    },
    "comparer": {
        "imagedoctor": "tts_verifier.verifiers.imagedoctor:ImageDoctor.from_pretrained",
        "openai": "tts_verifier.verifiers.openai:OpenAIVerifier",
        "vqascore": "tts_verifier.verifiers.vision_language.vqascore:VQAScore",
        "fake": "tts_verifier.testing:FakeComparer",
    },
    "rewriter": {
        "shapes": "tts_verifier.shapes.rewriter:ShapesRewriter",
        "chat": "tts_verifier.strategies.common.chat_rewriter:ChatRewriter",
    },
    "strategy": {
        "drafts": "tts_verifier.strategies.drafts:Drafting",
        "reflection": "tts_verifier.strategies.reflection:Reflection",
        "adaptive": "tts_verifier.strategies.adaptive:Adaptive",
        "best_of_n": "tts_verifier.strategies.best_of_n:BestOfN",
        "search_over_paths": "tts_verifier.strategies.search_over_paths:SearchOverPaths",
        "seed_beam": "tts_verifier.strategies.seed_beam:SeedBeam",
        "spectral": "tts_verifier.strategies.spectral:Spectral",
        "successive_halving": "tts_verifier.strategies.successive_halving:SuccessiveHalving",
        "zero_order": "tts_verifier.strategies.zero_order:ZeroOrder",
        "fk_steering": "tts_verifier.strategies.fk_steering:FKSteering",
        "inpaint_reroll": "tts_verifier.strategies.inpaint_reroll:InpaintReroll",
    },
}
"""Role -> name -> "module:attribute" of the builder: a class or a function."""


_METHOD_OF: Final[Mapping[str, str]] = {
    "generator": "generate",
    "verifier": "verify",
    "comparer": "compare",
    "rewriter": "rewrite",
    "strategy": "propose",
}
"""Role -> a method that each class of it has."""

_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_IMPORT_PATH: Final = re.compile(rf"(?P<module>.+\.py|{_DOTTED}):(?P<path>{_DOTTED})")

_PLUGIN_FOLDERS: Final[ContextVar[tuple[Path, ...]]] = ContextVar("plugin_folders", default=())
_EXECUTING: Final = RLock()
"""Held while a file is executed: another thread must not see half a module."""


def recipe_folder(package: Path = _PACKAGE) -> Path:
    """Returns the folder of the packaged recipes.

    A wheel holds them inside the package; a checkout and an editable install, beside it.
    """
    packed = package / "recipes"
    return packed if packed.is_dir() else package.parent / "recipes"


def names(role: str) -> dict[str, str]:
    """Returns name -> "module:attribute" of a role, plug-ins included.

    Args:
        role: "generator", "verifier", "comparer", "rewriter" or "strategy".
    """
    available = dict(BUILT_IN[role])
    for entry in entry_points(group=GROUP):
        kind, _, name = entry.name.partition(".")
        if kind == role and name:
            # A plug-in cannot replace a built-in name; of two plug-ins the first one counts.
            available.setdefault(name, entry.value)
    return available


def builder(role: str, name: str) -> Callable[..., Any]:
    """Returns the builder of a role and name, and imports only its module.

    Args:
        role: "generator", "verifier", "comparer", "rewriter" or "strategy".
        name: built in, or of a plug-in; a plug-in cannot replace a built-in name. Or an import
            path: `FILE.py:CLASS` or `PACKAGE.MODULE:CLASS`.

    Raises:
        RecipeError: there is no such name (the message suggests similar ones and lists all), or
            its module cannot be imported.
    """
    if is_import_path(name):
        return _imported(role, name)
    # Listing plug-ins reads the metadata of every installed package, so built-in names avoid it.
    available = BUILT_IN[role] if name in BUILT_IN[role] else names(role)
    if name not in available:
        hint = suggestion(name, available)
        own = " One of your own is named as FILE.py:CLASS or PACKAGE.MODULE:CLASS."
        raise RecipeError(f"Unknown {role} {name!r}. {hint}{own if _looks_own(name) else ''}")
    module, _, path = available[name].partition(":")
    try:
        target: Any = import_module(module)
        for attribute in path.split("."):
            target = getattr(target, attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"The {role} {name!r} is {available[name]}, which fails: {error}"
        ) from error
    return target  # type: ignore[no-any-return]


def is_import_path(name: str) -> bool:
    """Returns whether a name is `FILE.py:CLASS` or `PACKAGE.MODULE:CLASS`."""
    return _IMPORT_PATH.fullmatch(name) is not None


@contextmanager
def plugins_beside(*folders: Path) -> Iterator[None]:
    """Inside the `with` block, import paths are looked up in these folders first.

    The working folder comes last, and is the only one outside such a block. It concerns the
    calling thread alone.
    """
    token = _PLUGIN_FOLDERS.set(folders)
    try:
        yield
    finally:
        _PLUGIN_FOLDERS.reset(token)


def plugin_folders() -> tuple[Path, ...]:
    """Returns the folders where import paths are looked up, absolute, the first one first."""
    return tuple(dict.fromkeys(folder.absolute() for folder in (*_PLUGIN_FOLDERS.get(), Path())))


def _imported(role: str, name: str) -> Callable[..., Any]:
    match = _IMPORT_PATH.fullmatch(name)
    assert match is not None
    module = _module(match["module"], f"The {role} {name!r}")
    target: Any = module
    for attribute in match["path"].split("."):
        if not hasattr(target, attribute):
            public = [n for n in vars(target) if not n.startswith("_")]
            raise RecipeError(
                f"The {role} {name!r} must name a class or a function of {match['module']}, which "
                f"has no {attribute}. {suggestion(attribute, public)}"
            )
        target = getattr(target, attribute)
    lacks = _METHOD_OF[role] if inspect.isclass(target) else ""
    if not callable(target) or (lacks and not hasattr(target, lacks)):
        why = f"has no method {lacks}" if lacks else f"is a {type(target).__name__}"
        raise RecipeError(
            f"The {role} {name!r} must be a class with a method {_METHOD_OF[role]}, or a function "
            f"that builds such an object, and {why}. docs/plugins.md has a template."
        )
    return target  # type: ignore[no-any-return]


def _module(module: str, what: str) -> ModuleType:
    """Returns a module, given its file or its dotted name; `what` begins the errors."""
    folders = plugin_folders()
    try:
        if module.endswith(".py"):
            places = [folder / Path(module).expanduser() for folder in folders]
            file = next((place for place in places if place.is_file()), None)
            if file is None:
                raise RecipeError(
                    f"{what} must name a file that exists, and {module} is in none of "
                    f"{', '.join(map(str, folders))}. Give its path from the recipe's folder."
                )
            with _EXECUTING:
                return _module_of_file(file.resolve())
        for folder in map(str, folders):
            # Last, so that no file beside a recipe takes the place of a library.
            sys.path += [] if folder in sys.path else [folder]
        return import_module(module)
    except RecipeError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise RecipeError(
                f"{what} must name a module that can be imported, and there is no {error.name!r}. "
                "Install its package, or give a file: FILE.py:CLASS."
            ) from error
        raise RecipeError(f"{what} cannot be imported: {_where(error)}") from error
    except (Exception, SystemExit) as error:
        raise RecipeError(f"{what} cannot be imported: {_where(error)}") from error


def _module_of_file(file: Path) -> ModuleType:
    """Returns the module of a file, which a process executes once, and again after an edit."""
    place = str(file).encode("utf-8", "surrogateescape")
    # A name of its own: two recipes may have a `mine.py` each, and notebooks and the workers of a
    # cluster live longer than what a file says.
    source = file.read_bytes()
    digest = hashlib.sha256(place + b"\0" + source).hexdigest()
    name = f"tts_plugin_{digest[:12]}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    # As for a script: it may import what lies beside it.
    sys.path += [] if str(file.parent) in sys.path else [str(file.parent)]
    spec = spec_from_file_location(name, file)
    assert spec is not None
    sys.modules[name] = module = module_from_spec(spec)
    try:
        # Not by the loader, which takes a compiled file of the same second for the edited one.
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _where(error: BaseException) -> str:
    """Returns what an import failed with, and in which line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return text
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})"


def _looks_own(name: str) -> bool:
    return name.endswith(".py") or "." in name or ":" in name


def parameters(builder: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Returns name -> (type, default) of a builder's parameters.

    The default is `inspect.Parameter.empty` where there is none. Each key of
    `**options: Unpack[SomeTypedDict]` counts as a parameter whose default is None. The first
    parameter of a `from_pretrained` is called `model`, whatever its real name.
    """
    hints = hints_of(builder)
    accepted: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(builder).parameters.items():
        hint = hints.get(name, UNCHECKED)
        if parameter.kind is parameter.VAR_KEYWORD:
            options = next(iter(get_args(hint)), None)
            keys = dict.fromkeys(getattr(options, "__annotations__", ()), UNCHECKED)
            # Light modules import heavy ones, such as torch, for type checkers only. The builder
            # has imported those that it needs.
            keys |= _hints(options, localns=sys.modules)
            accepted |= {key: (kind, None) for key, kind in keys.items()}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            accepted[name] = (hint, parameter.default)
    # Recipes name a checkpoint `model` in every section, and `from_pretrained` has other names.
    if getattr(builder, "__name__", "") == "from_pretrained" and accepted:
        first = next(iter(accepted))
        accepted = {"model": accepted.pop(first), **accepted}
    return accepted


def hints_of(builder: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a builder's parameters, resolved; none if one cannot be."""
    return _hints(builder.__init__ if inspect.isclass(builder) else builder)


def _hints(annotated: Any, localns: Mapping[str, Any] | None = None) -> dict[str, Any]:
    try:
        return get_type_hints(annotated, localns=localns)
    except Exception:
        # A plug-in may annotate with any text, or with names that only type checkers know.
        return {}


def built(role: str, values: Mapping[str, Any]) -> Any:
    """Builds a part inside another one from its table: `name` and arguments.

    Args:
        role: as for `builder`.
        values: from a recipe.

    Raises:
        InputError: the name or an argument is missing or unknown, or the part refuses it; its
            `argument` is the key in the table.
    """
    arguments = dict(values)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"{role} needs a 'name' beside its arguments, got {values!r:.200}.")
    return built_by_name(role, name, arguments)


def built_by_name(
    role: str, name: str, arguments: Mapping[str, Any], where_taken: Mapping[str, Any] | None = None
) -> Any:
    """Builds a part from its name and arguments.

    Args:
        role: as for `builder`.
        name: as for `builder`.
        arguments: their types are checked as far as they are plain values.
        where_taken: further arguments, for a builder that has them; `arguments` come first.

    Raises:
        InputError: as for `built`.
    """
    try:
        build = builder(role, name)
    except RecipeError as error:
        raise InputError(str(error), argument="name") from error
    accepted = parameters(build)
    further = {key: value for key, value in (where_taken or {}).items() if key in accepted}
    arguments = further | dict(arguments)
    for key in arguments:
        if key not in accepted:
            raise InputError(
                f"{role} {name!r} has no argument {key!r}. {suggestion(str(key), accepted)}",
                argument=str(key),
            )
    missing = [k for k, (_, d) in accepted.items() if d is inspect.Parameter.empty]
    missing = [key for key in missing if key not in arguments]
    if missing:
        raise InputError(f"{role} {name!r} needs {', '.join(missing)}, which is not given.")
    check_arguments(f"{role} {name!r}", arguments, accepted)
    try:
        return call(build, arguments, name)
    except TypeError as error:
        raise InputError(f"{role} {name!r} cannot be built: {error}.") from error


def call(builder: Callable[..., Any], values: Mapping[str, Any], name: str = "") -> Any:
    """Calls a builder with values under the names that `parameters` gives them.

    Args:
        builder: a class or a function.
        values: its arguments.
        name: of the builder, as in a recipe.

    Raises:
        InputError: a builder that `name` gives by an import path raises an error of any kind.
    """
    values = dict(values)
    first = []
    if getattr(builder, "__name__", "") == "from_pretrained" and "model" in values:
        first = [values.pop("model")]
    try:
        return builder(*first, **values)
    except Exception as error:
        # Of the package's own parts, an unexpected error needs its traceback.
        if isinstance(error, TTSError) or not is_import_path(name):
            raise
        raise InputError(f"{name!r} cannot be built: {_where(error)}") from error
