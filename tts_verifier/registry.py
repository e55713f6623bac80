"""Maps the names that recipes use to builders of generators, verifiers and strategies; calls these.

A module is imported only when one of its builders is requested. Python users pass instances; only
recipes and commands use names. Third parties add names through the entry-point group
`tts_verifier.plugins`, as `generator.mine`, `verifier.mine`, `comparer.mine` or `strategy.mine`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, get_args, get_type_hints

from tts_verifier.errors import RecipeError, suggestion

UNCHECKED: Final = object()
"""The type of a parameter without an annotation, or with one that cannot be resolved."""
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
        name: built in, or of a plug-in; a plug-in cannot replace a built-in name.

    Raises:
        RecipeError: there is no such name (the message suggests similar ones and lists all), or
            its module cannot be imported.
    """
    # Listing plug-ins reads the metadata of every installed package, so built-in names avoid it.
    available = BUILT_IN[role] if name in BUILT_IN[role] else names(role)
    if name not in available:
        raise RecipeError(f"Unknown {role} {name!r}. {suggestion(name, available)}")
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


def parameters(builder: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Returns name -> (type, default) of a builder's parameters.

    The default is `inspect.Parameter.empty` where there is none. Each key of
    `**options: Unpack[SomeTypedDict]` counts as a parameter whose default is None. The first
    parameter of a `from_pretrained` is called `model`, whatever its real name.
    """
    try:
        hints = get_type_hints(builder.__init__ if inspect.isclass(builder) else builder)
    except (NameError, TypeError):
        # A plug-in may annotate with names that exist only while type checking.
        hints = {}
    accepted: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(builder).parameters.items():
        hint = hints.get(name, UNCHECKED)
        if parameter.kind is parameter.VAR_KEYWORD:
            options = next(iter(get_args(hint)), None)
            # Light modules import heavy ones, such as torch, for type checkers only. The builder
            # has imported those that it needs.
            option_hints = {} if options is None else get_type_hints(options, localns=sys.modules)
            accepted |= {option: (kind, None) for option, kind in option_hints.items()}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            accepted[name] = (hint, parameter.default)
    # Recipes name a checkpoint `model` in every section, and `from_pretrained` has other names.
    if getattr(builder, "__name__", "") == "from_pretrained" and accepted:
        first = next(iter(accepted))
        accepted = {"model": accepted.pop(first), **accepted}
    return accepted


def call(builder: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Calls a builder with values under the names that `parameters` gives them."""
    values = dict(values)
    if getattr(builder, "__name__", "") == "from_pretrained" and "model" in values:
        return builder(values.pop("model"), **values)
    return builder(**values)
