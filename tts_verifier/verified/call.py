"""Splits the call of a wrapped pipeline into one search for every prompt."""

from __future__ import annotations

import functools
import inspect
import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tts_verifier.errors import InputError, TTSError
from tts_verifier.generators.diffusers.loading import check_call
from tts_verifier.identity import seed_for
from tts_verifier.images import as_list

_OUTPUT_TYPES: Final = ("pil", "np", "pt")
_COUNT_ARGUMENTS: Final = ("num_images_per_prompt", "num_videos_per_prompt")
_SEARCH_ARGUMENTS: Final = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""Arguments that the search sets itself."""
_IMAGE_ARGUMENTS: Final = ("image", "mask_image", "control_image")
"""Arguments that may hold one image for each of several prompts."""
_CALLBACK_ARGUMENTS: Final = ("callback_on_step_end", "callback")


class CallbackError(TTSError):
    """A user's callback raised an error, which ends the whole call.

    The runner retries a candidate whose generation failed, but passes on a `TTSError` at once.
    The wrapped pipeline then raises `original` in its place.

    Attributes:
        original: what the callback raised.
    """

    def __init__(self, original: Exception) -> None:
        super().__init__(f"A callback raised {type(original).__name__}: {original}")
        self.original = original


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """The part of a call that concerns one of its prompts."""

    prompt: str
    """The prompt."""
    seed: int
    """The seed of its search."""
    arguments: Mapping[str, Any]
    """Its share of the arguments that are lists, such as its own negative prompt."""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of a call, sorted by their purpose."""

    requests: Sequence[PromptRequest]
    """One for every prompt."""
    seeds: Sequence[int]
    """For every prompt, the seed that the user passed or that was chosen at random."""
    single_prompt: bool
    """Whether `prompt` was a text rather than a list of texts."""
    shared_arguments: Mapping[str, Any]
    """The arguments that all prompts share."""
    output_type: str
    """"pil", "np" or "pt"."""
    images_per_prompt: int
    """How many images to return for each prompt, the best first."""
    return_dict: bool
    """Whether to return an output object rather than a tuple."""

    @classmethod
    def from_arguments(cls, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Sorts the arguments of a call of `pipe`.

        Raises:
            InputError: an argument that the pipeline does not know, or that the search sets.
        """
        call = _named_arguments(pipe, args, kwargs)
        # As in diffusers, None for the type of the output or for a count means the default.
        prompt, output_type = call.pop("prompt", None), call.pop("output_type", "pil") or "pil"
        # Columns and arrays of texts are lists; a pipeline takes only lists.
        is_list = prompt is not None and not isinstance(prompt, str)
        prompt = as_list(prompt, "prompts") if is_list else prompt
        call = {k: _listed_texts(v) if "prompt" in k else v for k, v in call.items()}
        counts = [call.pop(name, None) for name in _COUNT_ARGUMENTS]
        count = next((number for number in counts if number is not None), 1)
        _check_values(prompt, call, output_type=output_type, count=count)
        seeds = _seeds(call.pop("seed", None), call.pop("generator", None), prompt)
        call = {k: v for k, v in call.items() if k not in _SEARCH_ARGUMENTS}
        for name in _CALLBACK_ARGUMENTS:
            # diffusers recognises its own callback objects by their class, so these stay.
            if callable(callback := call.get(name)) and not hasattr(callback, "tensor_inputs"):
                call[name] = _ending_the_call(callback)
        return_dict = call.pop("return_dict", True)
        requests, shared = _split_by_prompt(pipe, prompt, seeds, call)
        single = isinstance(prompt, str)
        return cls(requests, seeds, single, shared, output_type, count, return_dict)

    def groups(self) -> list[list[int]]:
        """Returns the indices of requests that one search can serve, which fills its batches."""
        groups: dict[Any, list[int]] = {}
        for index, request in enumerate(self.requests):
            # Images are compared by identity: comparing their pixels could take long.
            own = [(k, v if isinstance(v, str) else id(v)) for k, v in request.arguments.items()]
            groups.setdefault((request.seed, *own), []).append(index)
        return list(groups.values())


def _named_arguments(pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all arguments of a call by name."""
    signature = inspect.signature(type(pipe).__call__)
    # Checked here, because `bind_partial` would raise a TypeError that does not name the limit.
    if len(args) >= len(signature.parameters):
        raise InputError(
            f"{type(pipe).__name__} takes at most {len(signature.parameters) - 1} arguments, "
            f"got {len(args)} without a name. Name them."
        )
    call = dict(signature.bind_partial(pipe, *args).arguments)
    call.pop("self", None)
    if twice := sorted(set(call) & set(kwargs)):
        raise InputError(f"{', '.join(twice)} must be passed once, got it by position and by name.")
    check_call(pipe, {k: v for k, v in kwargs.items() if k != "seed"})
    return {**call, **kwargs}


def _check_values(prompt: Any, call: Mapping[str, Any], *, output_type: str, count: int) -> None:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise InputError(
            f"prompt must be a text or a list of texts, which the verifier reads, got {prompt!r}."
        )
    for place, text in enumerate(prompts):
        if not text.strip():
            raise InputError(
                f"Prompt {place} must say what the image should show; it is empty. Call the "
                "pipeline without the wrapper to generate from no prompt."
            )
    if taken := [name for name in _SEARCH_ARGUMENTS if call.get(name) is not None]:
        raise InputError(
            f"The search makes {', '.join(taken)} itself. Leave it out, or call the pipeline "
            "without the wrapper."
        )
    if output_type not in _OUTPUT_TYPES:
        raise InputError(
            f"output_type must be one of {', '.join(_OUTPUT_TYPES)}, because the verifier scores "
            f"finished images, got {output_type!r}."
        )
    # bool is a subclass of int, and True would pass for 1.
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"num_images_per_prompt must be a positive integer, got {count!r}.")


def _seeds(seed: Any, generator: Any, prompt: str | Sequence[str]) -> list[int]:
    """Returns a seed for every prompt. A torch generator yields one seed, and advances."""
    import torch

    count = 1 if isinstance(prompt, str) else len(prompt)
    if seed is not None and generator is not None:
        raise InputError("seed and generator say the same thing; give one of them, got both.")
    if generator is None:
        return [secrets.randbits(32) if seed is None else _integer_seed(seed)] * count
    generators = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if len(generators) not in (1, count) or not all(
        isinstance(g, torch.Generator) for g in generators
    ):
        raise InputError(
            f"generator must be a torch.Generator, or a list of one for each of {count} prompts, "
            f"got {generator!r}."
        )
    # A random number from its stream, so that two calls with one generator differ, as in diffusers.
    seeds = [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generators]
    return seeds if len(seeds) == count else seeds * count


def _integer_seed(seed: Any) -> int:
    try:
        if not isinstance(seed, bool):
            return operator.index(seed)
    except TypeError:
        pass
    raise InputError(f"seed must be an integer, got {seed!r}.")


def _ending_the_call(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a callback whose errors end the call rather than one candidate."""

    # diffusers inspects the signature of a callback, which `wraps` passes on.
    @functools.wraps(callback)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except Exception as error:
            raise CallbackError(error) from error

    return called


def _split_by_prompt(
    pipe: Any, prompt: str | Sequence[str], seeds: Sequence[int], call: Mapping[str, Any]
) -> tuple[list[PromptRequest], dict[str, Any]]:
    """Returns a request for every prompt, and the arguments that all prompts share."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    lists = _lists_by_prompt(pipe, len(prompts), call)
    requests: list[PromptRequest] = []
    for index, (text, seed) in enumerate(zip(prompts, seeds, strict=True)):
        own = {name: values[index] for name, values in lists.items()}
        repeats = sum(request.prompt == text for request in requests)
        # A prompt that occurs twice would otherwise have the same candidates twice.
        seed = seed_for(seed, text, repeats, "again") if repeats else seed
        requests.append(PromptRequest(text, seed, own))
    return requests, {k: v for k, v in call.items() if k not in lists}


def _lists_by_prompt(pipe: Any, count: int, call: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the arguments that are lists with an item for each of `count` prompts."""
    lists = {k: list(v) for k, v in call.items() if "prompt" in k and _is_list_of_texts(v)}
    images = {k: items for k in _IMAGE_ARGUMENTS if len(items := _images(pipe, k, call.get(k))) > 1}
    if count > 1:
        lists |= images
    elif images:
        name, items = next(iter(images.items()))
        raise InputError(f"{name} must be one image for one prompt, got {len(items)}.")
    for name, values in lists.items():
        if len(values) != count:
            raise InputError(
                f"{name} must have one item for each of {count} prompts, got {len(values)}."
            )
    return lists


def _listed_texts(value: Any) -> Any:
    """Returns a column or an array of texts as a list; everything else as it is."""
    if getattr(value, "ndim", 0) != 1 or hasattr(value, "columns"):
        return value
    listed = as_list(value, "prompts")
    return listed if _is_list_of_texts(listed) else value


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)


def _images(pipe: Any, name: str, value: Any) -> list[Any]:
    """Returns the images of an argument that has one per prompt, none if all prompts share it."""
    conditioners = [getattr(pipe, part, None) for part in ("controlnet", "adapter")]
    takes_strength = "strength" in inspect.signature(type(pipe).__call__).parameters
    # Pipelines without either take a list of reference images, which belong together.
    if not takes_strength and not any(conditioners):
        return []
    # Several ControlNets take a list with an image for each of them.
    names = [type(part).__name__ for part in conditioners]
    takes_list = any(word in name for name in names for word in ("Multi", "Union"))
    if isinstance(value, (list, tuple)):
        if takes_list:
            return list(value) if all(isinstance(item, (list, tuple)) for item in value) else []
        # A single array or tensor gets a batch axis, since a pipeline reads its first axis as one.
        return [item[None] if getattr(item, "ndim", 0) == 3 else item for item in value]
    # A batch of masks has no axis of channels.
    batch_dimensions = 3 if name == "mask_image" else 4
    if getattr(value, "ndim", 0) == batch_dimensions:
        return [value[index : index + 1] for index in range(len(value))]
    return []
