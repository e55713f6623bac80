"""Wraps a diffusers pipeline: it is called as before, and each call searches for the best images.

The search itself is `runner.execute` over a `DiffusersGenerator`. This module turns a call into
searches, and their results into the pipeline's own output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

from tts_verifier.choice.objective import as_objective
from tts_verifier.errors import InputError, suggestion
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.hooks import (
    exclusive,
    refuse_inside_its_call,
    take_interrupt,
)
from tts_verifier.generators.diffusers.loading import check_pipeline, load_pipeline
from tts_verifier.generators.diffusers.prompt_cache import PromptCache
from tts_verifier.generators.diffusers.traits import computing_device
from tts_verifier.runner import SearchOptions, execute
from tts_verifier.runner.setup import (
    RunSetup,
    check_details,
    check_looks,
    check_options,
    check_part,
    check_scores,
    check_ties,
    known_scores,
)
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.types import Budget, Choice, Prompt, Trial
from tts_verifier.verified.call import Call, CallbackError
from tts_verifier.verified.output import (
    Returned,
    SearchOutcome,
    as_html,
    as_output_type,
    best_images,
    check_generated,
    ranking_of,
)
from tts_verifier.verifiers.load import load_verifier

if TYPE_CHECKING:
    from tts_verifier.interfaces import Strategy, Verifier

_GENERATOR_PARTS: Final = ("pipe", "batch_size", "inpaint")
_OWN_ATTRIBUTES: Final = (*_GENERATOR_PARTS, "verifier", "strategy", "options", "_generator")


class VerifiedPipeline:
    """A text-to-image pipeline whose every call is a search.

    It is called as the pipeline is, with two differences: `seed` (an int) may take the place
    of `generator`, and `num_images_per_prompt` is the number of candidates to return, best first.
    The output is the pipeline's own, with `.images`, and

    - `.ranking`: a `Ranking` of the finished candidates, best first; a list of them when
      `prompt` is a list,
    - `.trials`: every candidate of every prompt,
    - `.seed`: the seed that repeats the call, None when `generator` yielded several,
    - `.verified`: for each image, whether it was chosen by its verdict,
    - `.interrupted`: whether `pipe._interrupt` ended the search.

    A notebook shows the output as its ranking.

    With several prompts, a list of images such as `image` must have one image for each of them. If
    a prompt has too few usable candidates, images without a usable verdict follow, and then None; a
    warning says so. If a callback is a function, an error that it raises ends the call.
    `_interrupt = True`, set by a callback or another thread, ends the search with the candidates so
    far. All other attributes are the pipeline's: setting the scheduler here sets the pipeline's.

    Safe to share between threads: calls, moves and changes of attributes wait for earlier calls,
    also for those of another wrapper of the same pipeline. Calling it from within its own callback
    raises UnsupportedError at once. Other methods are the pipeline's own, and do not wait.

    Args:
        pipe: a loaded pipeline, used as it is.
        verifier: a verifier; or its name, a folder or a hub id, for `load_verifier`.
        strategy: decides what to generate next; None = `BestOfN()`.
        batch_size: candidates generated at a time; None = as many as fit into memory.
        inpaint: a pipeline that repaints, loaded or by name; see `DiffusersGenerator`.
        options: `objective`, `budget`, `judge`, `detail`, `looks`, `ties`, `near`, `comparer` and
            `overlap`, as in a run.

    Raises:
        InputError: `pipe` is no text-to-image pipeline; a part or an option cannot be used.
    """

    def __init__(
        self,
        pipe: Any,
        verifier: Verifier | str | Path,
        *,
        strategy: Strategy | None = None,
        batch_size: int | None = None,
        inpaint: Any = None,
        **options: Unpack[SearchOptions],
    ) -> None:
        if isinstance(pipe, (str, Path)):
            raise InputError(
                f"wrap needs a loaded pipeline, got {str(pipe)!r}. Load it with "
                "DiffusionPipeline.from_pretrained."
            )
        if isinstance(pipe, VerifiedPipeline):
            raise InputError(
                "wrap needs a pipeline of diffusers, got one that is wrapped already. Wrap its "
                "`pipe` to give it another verifier or strategy."
            )
        check_pipeline(pipe)
        _check_options(options)
        check_options(**options)
        self.pipe = pipe
        self.strategy: Strategy = BestOfN() if strategy is None else strategy
        check_part("strategy", self.strategy)
        self.verifier = load_verifier(verifier) if isinstance(verifier, (str, Path)) else verifier
        check_part("verifier", self.verifier)
        objective = as_objective(options.get("objective"))
        check_scores(objective, self.strategy, known_scores(self.verifier))
        check_details(self.strategy, self.verifier)
        check_looks(
            options.get("looks", 0),
            detail=options.get("detail"),
            strategy=self.strategy,
            verifier=self.verifier,
            budget=options.get("budget", Budget()),
        )
        check_ties(
            options.get("ties", 0),
            near=options.get("near", 0.0),
            comparer=options.get("comparer") or self.verifier,
            budget=options.get("budget", Budget()),
        )
        self.batch_size = batch_size
        if isinstance(inpaint, (str, Path)):
            # Loaded beside the pipeline and in its precision, because both work on the same images.
            dtype = str(getattr(pipe, "dtype", "")).removeprefix("torch.")
            inpaint = load_pipeline(inpaint, dtype, computing_device(pipe))
        self.inpaint = inpaint
        self.options = options
        self._generator: DiffusersGenerator | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Searches; takes what the pipeline's call takes.

        Raises:
            InputError: an argument that the pipeline does not know, or that the search sets.
            UnsupportedError: the pipeline cannot do what the strategy needs, no candidate could be
                generated, or this is its own callback.
        """
        with self._exclusive():
            refuse_inside_its_call(self.pipe)
            return self._search(args, kwargs)

    def _search(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        call = Call.from_arguments(self.pipe, args, kwargs)
        try:
            outcomes = self._search_prompts(call)
        except CallbackError as error:
            # The user sees what the callback raised, as without the wrapper.
            raise error.original from None
        trials = tuple(trial for outcome in outcomes for trial in outcome.trials)
        check_generated(trials)
        returned: list[Returned] = []
        for outcome in outcomes:
            returned += best_images(outcome, call.images_per_prompt)
        traits = self._shared_generator().traits
        images = [image for image, _ in returned]
        output = traits.output(as_output_type(images, call.output_type))
        if not call.return_dict:
            return tuple(getattr(output, field.name) for field in fields(output))
        rankings = [ranking_of(outcome) for outcome in outcomes]
        output.ranking = rankings[0] if call.single_prompt else rankings
        output.trials = trials
        output.seed = call.seeds[0] if len(set(call.seeds)) == 1 else None
        output.verified = [verified for _, verified in returned]
        output.interrupted = any(outcome.interrupted for outcome in outcomes)
        # Set on the object, because its class is the pipeline's own.
        texts = [request.prompt for request in call.requests]
        output._repr_html_ = partial(as_html, list(zip(texts, rankings, strict=True)))
        return output

    def _search_prompts(self, call: Call) -> list[SearchOutcome]:
        """Runs the searches of a call; returns an outcome for every prompt, in order."""
        # Encodings live for one call, since the user may load a LoRA before the next one.
        cache = PromptCache()
        outcomes: dict[int, SearchOutcome] = {}
        interrupted = False
        for group in call.groups():
            # Set while the verifier was at work: no later group may begin.
            interrupted = interrupted or bool(outcomes and take_interrupt(self.pipe))
            if interrupted:
                outcomes |= dict.fromkeys(group, SearchOutcome(Choice(None, ()), (), True))
                continue
            own = call.requests[group[0]].arguments
            generator = self._shared_generator().with_call(
                {**call.shared_arguments, **own}, prompt_cache=cache
            )
            outcomes |= self._search_group(generator, call, group)
            interrupted = outcomes[group[0]].interrupted
        return [outcomes[index] for index in range(len(call.requests))]

    def _search_group(
        self, generator: DiffusersGenerator, call: Call, group: Sequence[int]
    ) -> dict[int, SearchOutcome]:
        """Runs one search for requests that differ in nothing but their prompt."""
        prompts = {index: Prompt(f"{index:04d}", call.requests[index].prompt) for index in group}
        seed = call.requests[group[0]].seed
        options: Any = self.options
        setup = RunSetup(generator, self.verifier, self.strategy, seed=seed, **options)
        result = execute(setup, list(prompts.values()))
        trials: dict[str, list[Trial]] = {prompt.id: [] for prompt in prompts.values()}
        for trial in result.trials:
            trials[trial.prompt.id].append(trial)
        return {
            index: SearchOutcome(
                result.choices[prompt.id], tuple(trials[prompt.id]), result.interrupted
            )
            for index, prompt in prompts.items()
        }

    def _shared_generator(self) -> DiffusersGenerator:
        """Returns the generator that all calls share, so that the batch size is found only once."""
        if self._generator is None:
            self._generator = DiffusersGenerator(
                self.pipe, batch_size=self.batch_size, inpaint=self.inpaint
            )
        return self._generator

    def to(self, *args: Any, **kwargs: Any) -> VerifiedPipeline:
        """Moves the pipeline, as its own `to` does, and returns the wrapped one."""
        with self._exclusive():
            self.pipe.to(*args, **kwargs)
        return self

    def _exclusive(self) -> AbstractContextManager[None]:
        # A loaded pipeline that repaints takes part in the calls.
        return exclusive(self.pipe, self.inpaint)

    def __getattr__(self, name: str) -> Any:
        # `copy` and `pickle` look attributes up on an object that has none yet: asking for `pipe`
        # would call this method again, without end.
        if name in _OWN_ATTRIBUTES or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Refused, because it would be set on the pipeline and have no effect.
        if name in SearchOptions.__annotations__:
            raise InputError(f"{name} must be passed when the pipeline is wrapped. Wrap it again.")
        if name not in _OWN_ATTRIBUTES:
            # A flag such as `_interrupt` is for the call that runs and must not wait for its end.
            with nullcontext() if name.startswith("_") else self._exclusive():
                setattr(self.pipe, name, value)
            return
        object.__setattr__(self, name, value)
        if name in _GENERATOR_PARTS:
            # The next call makes a new one.
            self._generator = None

    def __repr__(self) -> str:
        parts = (self.pipe, self.verifier, self.strategy)
        return f"VerifiedPipeline({', '.join(type(part).__name__ for part in parts)})"


def wrap(
    pipe: Any,
    verifier: Verifier | str | Path,
    *,
    strategy: Strategy | None = None,
    batch_size: int | None = None,
    inpaint: Any = None,
    **options: Unpack[SearchOptions],
) -> VerifiedPipeline:
    """Returns a pipeline that is called like `pipe`, and whose every call is a search.

    Args:
        pipe: a loaded text-to-image pipeline of diffusers.
        verifier: a verifier; or its name, a folder or a hub id, for `load_verifier`.
        strategy: decides what to generate next; None = `BestOfN()`.
        batch_size: candidates generated at a time; None = as many as fit into memory.
        inpaint: a pipeline that repaints; see `VerifiedPipeline`.
        options: `objective`, `budget`, `judge`, `detail`, `looks`, `ties`, `near`, `comparer` and
            `overlap`; see `tts_verifier.runner.SearchOptions`.

    Raises:
        InputError: `pipe` is no text-to-image pipeline; a part or an option cannot be used.
    """
    return VerifiedPipeline(
        pipe, verifier, strategy=strategy, batch_size=batch_size, inpaint=inpaint, **options
    )


def _check_options(options: Mapping[str, Any]) -> None:
    names = [*SearchOptions.__annotations__, "strategy", "batch_size", "inpaint"]
    if unknown := sorted(set(options) - set(names)):
        raise InputError(f"wrap does not take {unknown[0]}. {suggestion(unknown[0], names)}")
