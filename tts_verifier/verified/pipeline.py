"""A diffusers pipeline that searches: called like the one it wraps, it returns the best pictures.

The search is `runner.execute` over a `DiffusersGenerator`; here calls become searches and
results become the pipeline's own output, nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack
from weakref import WeakKeyDictionary

import numpy as np

from tts_verifier.choice.objective import Objective
from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.errors import InputError, RunWarning, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.batch import BLANKED
from tts_verifier.generators.diffusers.batch_size import Room
from tts_verifier.generators.diffusers.loading import check_pipeline, load_pipeline
from tts_verifier.generators.diffusers.placement import device_of
from tts_verifier.generators.diffusers.prompt_cache import Texts
from tts_verifier.registry import suggestion
from tts_verifier.runner.loop import execute
from tts_verifier.runner.setup import Search, check_part
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.types import Budget, Choice, Detail, Heatmaps, Prompt, Trial, Verdict
from tts_verifier.verified.call import Call, CallbackFailed, Request
from tts_verifier.verifiers.load import load_verifier

if TYPE_CHECKING:
    from PIL.Image import Image

    from tts_verifier.interfaces import Strategy, Verifier

_CUSTOM: Final[WeakKeyDictionary[Any, tuple[Any, VerifiedPipeline]]] = WeakKeyDictionary()
"""By custom pipeline: what it was told, and what searches with it, its verifier loaded once."""
_OURS: Final = ("pipe", "verifier", "strategy", "batch_size", "inpaint", "options", "_rooms")


class Options(TypedDict, total=False):
    """What a search may be told besides its parts; see `Search`."""

    objective: Objective
    budget: Budget
    judge: Verifier
    detail: Detail
    overlap: bool | None


class VerifiedPipeline:
    """A text-to-image pipeline whose every call is a search.

    It is called as the pipeline is, with two differences: `seed` (an int) may take the place
    of `generator`, and `num_images_per_prompt` asks for that many of the best candidates, best
    first. The output is the pipeline's own, with `.images`, and

    - `.ranking`: a `Ranking` of the finished candidates, best first; a list of them when
      `prompt` is a list,
    - `.trials`: every candidate of every prompt,
    - `.seed`: what repeats the call, None when `generator` gave several.

    A list of pictures, such as `image`, has one for each of several prompts. Where a prompt
    has too few usable candidates its images are None, with a warning. What a callback raises
    ends the call, if it is a function. All other attributes are the pipeline's: a scheduler set
    here is set there.

    Args:
        pipe: a loaded pipeline, used as it is.
        verifier: one, or a name for `Verifier.from_pretrained`.
        strategy: None is `BestOfN(8)`.
        batch_size: candidates drawn at a time; None is found by trying.
        inpaint: a pipeline that repaints, loaded or by name; see `DiffusersGenerator`.
        options: `objective`, `budget`, `judge`, `detail` and `overlap`, as in a run.

    Raises:
        InputError: it is no text-to-image pipeline; a part or an option is none.
    """

    def __init__(
        self,
        pipe: Any,
        verifier: Verifier | str,
        *,
        strategy: Strategy | None = None,
        batch_size: int | None = None,
        inpaint: Any = None,
        **options: Unpack[Options],
    ) -> None:
        check_pipeline(pipe)
        _check_options(options)
        self.pipe = pipe
        self.strategy: Strategy = BestOfN() if strategy is None else strategy
        check_part("strategy", self.strategy)
        self.verifier = load_verifier(verifier) if isinstance(verifier, str) else verifier
        check_part("verifier", self.verifier)
        self.batch_size = batch_size
        named = isinstance(inpaint, (str, Path))
        dtype = str(getattr(pipe, "dtype", "")).removeprefix("torch.")
        self.inpaint = load_pipeline(inpaint, dtype, device_of(pipe)) if named else inpaint
        self.options = options
        self._rooms: dict[object, Room] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Searches; takes what the pipeline's call takes.

        Raises:
            InputError: an argument that the pipeline does not know, or that the search sets.
            UnsupportedError: it cannot do what the strategy needs, or nothing could be drawn.
        """
        call, texts = Call.of(self.pipe, args, kwargs), Texts()
        found: dict[int, tuple[Choice, tuple[Trial, ...]]] = {}
        generators: list[DiffusersGenerator] = []
        for group in call.groups():
            generator = DiffusersGenerator(
                self.pipe,
                batch_size=self.batch_size,
                inpaint=self.inpaint,
                call={**call.rest, **call.asked[group[0]].own},
            )
            # What fits is found out once, and a text is encoded once a call.
            size = (generator.device, call.rest.get("height"), call.rest.get("width"))
            generator.room = self._rooms.setdefault((self.batch_size, *size), generator.room)
            generator.texts = texts
            generators.append(generator)
            try:
                found |= self._searched(generator, {place: call.asked[place] for place in group})
            except CallbackFailed as failed:
                raise failed.__cause__ from None  # type: ignore[misc]
        results = [found[place] for place in range(len(call.asked))]
        trials = tuple(trial for _, some in results for trial in some)
        _check_drawn(trials)
        images = [_as(call.kind, i) for choice, _ in results for i in _best(choice, call.count)]
        # One that drew knows what the pipeline's output looks like.
        drew = next((one for one in generators if one.output_kind), generators[0])
        out = drew.output(_stacked(call.kind, images))
        if not call.as_dict:
            return tuple(getattr(out, field.name) for field in fields(out))
        rankings = [_ranking(choice, some) for choice, some in results]
        out.ranking = rankings[0] if call.one else rankings
        out.trials = trials
        out.seed = call.seeds[0] if len(set(call.seeds)) == 1 else None
        return out

    def _searched(
        self, generator: DiffusersGenerator, asked: Mapping[int, Request]
    ) -> dict[int, tuple[Choice, tuple[Trial, ...]]]:
        """Runs one search for requests that differ in nothing but their text."""
        prompts = [Prompt(f"{place:04d}", request.text) for place, request in asked.items()]
        seed = next(iter(asked.values())).seed
        search = Search(generator, self.verifier, self.strategy, seed=seed, **self.options)
        result = execute(search, prompts)
        return {
            place: (
                result.choices[p.id],
                tuple(trial for trial in result.trials if trial.prompt.id == p.id),
            )
            for place, p in zip(asked, prompts, strict=True)
        }

    def to(self, *args: Any, **kwargs: Any) -> VerifiedPipeline:
        """Moves the pipeline, as its own `to` does, and returns the wrapped one."""
        self.pipe.to(*args, **kwargs)
        return self

    def __getattr__(self, name: str) -> Any:
        if name in _OURS or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Options.__annotations__:
            raise InputError(f"{name} must be given when the pipeline is wrapped. Wrap it again.")
        if name in _OURS:
            object.__setattr__(self, name, value)
        else:
            setattr(self.pipe, name, value)

    def __repr__(self) -> str:
        parts = (self.pipe, self.verifier, self.strategy)
        return f"VerifiedPipeline({', '.join(type(part).__name__ for part in parts)})"


def wrap(pipe: Any, verifier: Verifier | str, **options: Any) -> VerifiedPipeline:
    """Returns the pipeline as one that searches; see `VerifiedPipeline` for the arguments."""
    return VerifiedPipeline(pipe, verifier, **options)


def _check_options(options: Mapping[str, Any]) -> None:
    known = [*Options.__annotations__, "strategy", "batch_size", "inpaint"]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"wrap does not take {unknown[0]}. {suggestion(unknown[0], known)}")


def _check_drawn(trials: Sequence[Trial]) -> None:
    """Raises UnsupportedError where nothing was drawn, for one reason: the call's own."""
    reasons = {trial.error for trial in trials} - {BLANKED}
    drawn = any(trial.image or trial.cost.network_evaluations for trial in trials)
    if len(reasons) == 1 and not drawn:
        raise UnsupportedError(
            f"Every candidate must be drawn as the call says, and none could be: {reasons.pop()}. "
            "Call the pipeline itself to see where it fails."
        )


def _best(choice: Choice, count: int) -> list[Image | None]:
    """Returns the pictures of the best usable trials, None for those that are missing."""
    usable = [t for t in choice.order if t.image is not None and not np.isnan(t.objective)]
    found: list[Image | None] = [t.image.load() for t in usable[:count] if t.image is not None]
    if len(found) < count:
        warnings.warn(
            f"A prompt has {len(found)} usable candidates of the {count} pictures asked for; the "
            "others are None. `trials` has all candidates, with their errors.",
            RunWarning,
            stacklevel=3,
        )
    return found + [None] * (count - len(found))


def _ranking(choice: Choice, trials: Sequence[Trial]) -> Ranking:
    """Returns the finished candidates, best first; `index` is the place among the trials."""
    places = {trial.id: place for place, trial in enumerate(trials)}
    items = []
    for trial in choice.order:
        maps = Heatmaps({name: stored.load() for name, stored in trial.heatmaps.items()})
        verdict = Verdict(
            trial.scores, maps, trial.boxes, trial.text, trial.detail, cost=trial.cost
        )
        if trial.image is not None:
            image = trial.image.load()
            items.append(Ranked(places[trial.id], image, trial.objective, verdict))
    return Ranking(items)


def _as(kind: str, image: Image | None) -> Any:
    """Returns a picture as diffusers' output type has it, of 8 bits as it was judged."""
    if image is None or kind == "pil":
        return image
    return np.asarray(image, np.float32) / 255


def _stacked(kind: str, images: list[Any]) -> Any:
    """Returns them as diffusers' output type has them; a list where their sizes differ."""
    import torch

    if kind == "pil":
        return images
    shapes = {image.shape for image in images if image is not None} or {(0, 0, 3)}
    blank = np.full(next(iter(shapes)), np.nan, np.float32)
    arrays: list[Any] = [blank if image is None else image for image in images]
    if kind == "pt":
        arrays = [torch.from_numpy(array.transpose(2, 0, 1).copy()) for array in arrays]
    if len(shapes) > 1:
        return arrays
    return np.stack(arrays) if kind == "np" else torch.stack(arrays)


def search_as(kind: type, pipe: Any) -> VerifiedPipeline:
    """Returns what searches with a custom pipeline made of diffusers' `kind`.

    Args:
        kind: the base class, which draws. Siblings are looked up by the class's name.
        pipe: of a class derived from it; `pipe.search` holds the verifier, the strategy and
            the options of a `VerifiedPipeline`, None where there are none.

    Raises:
        InputError: it has no verifier.
    """
    verifier, strategy, options = pipe.search
    if verifier is None:
        raise InputError(
            f"{type(pipe).__name__} needs a verifier, it has none. Give one to from_pretrained: "
            'verifier="GYX97/ImageDoctor".'
        )
    told, known = _CUSTOM.get(pipe, (None, None))
    if known is None or told is not pipe.search:
        view: Any = object.__new__(kind)
        # The same parts and the same state, hooks and bars included.
        object.__setattr__(view, "__dict__", pipe.__dict__)
        known = VerifiedPipeline(view, verifier, strategy=strategy, **(options or {}))
        _CUSTOM[pipe] = (pipe.search, known)
    return known
