"""A diffusers pipeline that searches: called like the one it wraps, it returns the best pictures.

The search is `runner.execute` over a `DiffusersGenerator`; here calls become searches and
results become the pipeline's own output, nothing else.
"""

from __future__ import annotations

import inspect
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

import numpy as np

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.loading import check_call, check_pipeline
from tts_verifier.objective import Objective
from tts_verifier.ranking import Ranked, Ranking
from tts_verifier.runner import execute
from tts_verifier.scoring import load_verifier
from tts_verifier.search import Search
from tts_verifier.seeds import seed_for
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.types import Budget, Choice, Detail, Heatmaps, Prompt, Trial, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from tts_verifier.seams import Strategy, Verifier

_OURS: Final = ("pipe", "verifier", "strategy", "batch_size", "options")
_SEARCHED: Final = ("latents", "prompt_embeds", "negative_prompt_embeds")
_KINDS: Final = ("pil", "np", "pt")


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

    Where a prompt has too few usable candidates its images are None, with a warning. All
    other attributes are the pipeline's: a scheduler set here is set there.

    Args:
        pipe: a loaded pipeline, used as it is.
        verifier: one, or a name for `Verifier.from_pretrained`.
        strategy: None is `BestOfN(8)`.
        batch_size: candidates drawn at a time; None is found by trying.
        options: `objective`, `budget`, `judge`, `detail` and `overlap`, as in a run.

    Raises:
        InputError: it is no text-to-image pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        verifier: Verifier | str,
        *,
        strategy: Strategy | None = None,
        batch_size: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        check_pipeline(pipe)
        self.pipe = pipe
        self.verifier = load_verifier(verifier) if isinstance(verifier, str) else verifier
        self.strategy: Strategy = BestOfN() if strategy is None else strategy
        self.batch_size = batch_size
        self.options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Searches; takes what the pipeline's call takes.

        Raises:
            InputError: an argument that the pipeline does not know, or that the search sets.
        """
        call = _bound(self.pipe, args, kwargs)
        prompt, kind = call.pop("prompt", None), call.pop("output_type", "pil") or "pil"
        as_dict, count = call.pop("return_dict", True), call.pop("num_images_per_prompt", 1) or 1
        _check(prompt, call, kind=kind, count=count)
        seeds = _seeds(call.pop("seed", None), call.pop("generator", None), prompt)
        asked = _requests(prompt, seeds, call)
        generators: list[DiffusersGenerator] = []
        found: dict[int, tuple[Choice, tuple[Trial, ...]]] = {}
        for group in _groups(asked):
            generator = DiffusersGenerator(
                self.pipe, batch_size=self.batch_size, call={**call, **asked[group[0]].own}
            )
            generators.append(generator)
            found |= self._searched(generator, {place: asked[place] for place in group})
        results = [found[place] for place in range(len(asked))]
        images = [_as(kind, i) for choice, _ in results for i in _best(choice, count)]
        out = generators[-1].output(_stacked(kind, images))
        if not as_dict:
            return (out.images,)
        rankings = [_ranking(choice, trials) for choice, trials in results]
        out.ranking = rankings[0] if isinstance(prompt, str) else rankings
        out.trials = tuple(trial for _, trials in results for trial in trials)
        out.seed = seeds[0] if len(set(seeds)) == 1 else None
        return out

    def _searched(
        self, generator: DiffusersGenerator, asked: Mapping[int, _Request]
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


@dataclass(frozen=True, slots=True)
class _Request:
    """One prompt of a call; `own`: its share of the arguments that are lists."""

    text: str
    seed: int
    own: Mapping[str, str]


def _bound(pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call by their names, as the pipeline names them."""
    signature = inspect.signature(type(pipe).__call__)
    if len(args) >= len(signature.parameters):
        raise InputError(
            f"{type(pipe).__name__} takes at most {len(signature.parameters) - 1} arguments, "
            f"got {len(args)} without a name. Name them."
        )
    call = dict(signature.bind_partial(pipe, *args).arguments)
    call.pop("self", None)
    if twice := sorted(set(call) & set(kwargs)):
        raise InputError(f"{', '.join(twice)} must be given once, got it twice.")
    check_call(pipe, {k: v for k, v in kwargs.items() if k != "seed"})
    return {**call, **kwargs}


def _check(prompt: Any, call: Mapping[str, Any], *, kind: str, count: int) -> None:
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(
            f"prompt must be a text or a list of texts, which the verifier reads, got {prompt!r}."
        )
    if taken := [name for name in _SEARCHED if call.get(name) is not None]:
        raise InputError(
            f"The search makes {', '.join(taken)} itself. Leave it out, or call the pipeline "
            "without the wrapper."
        )
    if kind not in _KINDS:
        raise InputError(
            f"output_type must be one of {', '.join(_KINDS)}, the pictures as they were judged, "
            f"got {kind!r}."
        )
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"num_images_per_prompt must be a positive integer, got {count!r}.")


def _seeds(seed: Any, generator: Any, prompt: str | Sequence[str]) -> list[int]:
    """Returns a seed for every prompt; a torch generator gives one and moves on."""
    import torch

    count = 1 if isinstance(prompt, str) else len(prompt)
    if seed is not None and generator is not None:
        raise InputError("seed and generator say the same thing; give one of them, got both.")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InputError(f"seed must be an integer, got {seed!r}.")
    if generator is None:
        return [secrets.randbits(32) if seed is None else seed] * count
    given = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if len(given) not in (1, count) or not all(isinstance(g, torch.Generator) for g in given):
        raise InputError(
            f"generator must be a torch.Generator, or a list of one for each of {count} prompts, "
            f"got {generator!r}."
        )
    drawn = [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in given]
    return drawn if len(drawn) == count else drawn * count


def _requests(
    prompt: str | Sequence[str], seeds: Sequence[int], call: dict[str, Any]
) -> list[_Request]:
    """Returns what each prompt asks for, and takes its lists of texts out of the call."""
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    lists = {k: v for k, v in call.items() if "prompt" in k and isinstance(v, (list, tuple))}
    lists = {k: v for k, v in lists.items() if all(isinstance(text, str) for text in v)}
    for name, values in lists.items():
        if len(values) != len(texts):
            raise InputError(
                f"{name} must have a text for each of {len(texts)} prompts, got {len(values)}."
            )
        del call[name]
    asked: list[_Request] = []
    for place, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        own = {name: values[place] for name, values in lists.items()}
        before = sum(request.text == text for request in asked)
        seed = seed_for(seed, text, before, "again") if before else seed
        asked.append(_Request(text, seed, own))
    return asked


def _groups(asked: Sequence[_Request]) -> list[list[int]]:
    """Returns the places of requests that one search can serve, for fuller batches."""
    alike: dict[Any, list[int]] = {}
    for place, request in enumerate(asked):
        alike.setdefault((request.seed, *request.own.items()), []).append(place)
    return list(alike.values())


def _best(choice: Choice, count: int) -> list[Image | None]:
    """Returns the pictures of the best usable trials, None for those that are missing."""
    usable = [t for t in choice.order if t.image is not None and not np.isnan(t.objective)]
    found: list[Image | None] = [t.image.load() for t in usable[:count] if t.image is not None]
    if len(found) < count:
        warnings.warn(
            f"A prompt has {len(found)} usable candidates of the {count} pictures asked for; the "
            "others are None, and `trials` say why.",
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
    import torch

    if kind == "pil":
        return images
    shape = next((image.shape for image in images if image is not None), (0, 0, 3))
    blank = np.full(shape, np.nan, np.float32)
    array = np.stack([blank if image is None else image for image in images])
    return array if kind == "np" else torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


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
    if isinstance(verifier, str):
        verifier = load_verifier(verifier)
        pipe.search = (verifier, strategy, options)
    view: Any = object.__new__(kind)
    # The same parts and the same state, hooks and bars included.
    object.__setattr__(view, "__dict__", pipe.__dict__)
    return VerifiedPipeline(view, verifier, strategy=strategy, **(options or {}))
