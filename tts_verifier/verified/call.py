"""What the call of a wrapped pipeline asks for: a search for every prompt."""

from __future__ import annotations

import functools
import inspect
import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tts_verifier.errors import InputError
from tts_verifier.generators.diffusers.loading import check_call
from tts_verifier.identity import seed_for

_OUTPUTS: Final = ("pil", "np", "pt")
_COUNTS: Final = ("num_images_per_prompt", "num_videos_per_prompt")
_SEARCHED: Final = ("latents", "prompt_embeds", "negative_prompt_embeds")
_PICTURES: Final = ("image", "mask_image", "control_image")
"""Arguments that may have a picture for each of several prompts."""
_CALLBACKS: Final = ("callback_on_step_end", "callback")


class CallbackFailed(BaseException):
    """Carries what a user's callback raised past all that goes on without a candidate."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt of a call; `own`: its share of the arguments that are lists."""

    text: str
    seed: int
    own: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A call taken apart.

    `asked`: a request for every prompt, `one` if it was no list. `seeds`: as they were given or
    made, one for each. `rest`: arguments that all of them share. `kind`: of the pictures
    returned, `count` of them for each prompt. `as_dict`: False asks for a tuple.
    """

    asked: Sequence[Request]
    seeds: Sequence[int]
    one: bool
    rest: Mapping[str, Any]
    kind: str
    count: int
    as_dict: bool

    @classmethod
    def of(cls, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Takes the arguments of a call of `pipe` apart.

        Raises:
            InputError: an argument that the pipeline does not know, or that the search sets.
        """
        call = _bound(pipe, args, kwargs)
        prompt, kind = call.pop("prompt", None), call.pop("output_type", "pil") or "pil"
        counts = [call.pop(name, None) for name in _COUNTS]
        count = next((number for number in counts if number is not None), 1)
        _check(prompt, call, kind=kind, count=count)
        seeds = _seeds(call.pop("seed", None), call.pop("generator", None), prompt)
        call = {k: v for k, v in call.items() if k not in _SEARCHED}
        for name in _CALLBACKS:
            # diffusers tells its own ones by their class.
            if callable(own := call.get(name)) and not hasattr(own, "tensor_inputs"):
                call[name] = _passing(own)
        as_dict = call.pop("return_dict", True)
        asked = _requests(pipe, prompt, seeds, call)
        return cls(asked, seeds, isinstance(prompt, str), call, kind, count, as_dict)

    def groups(self) -> list[list[int]]:
        """Returns the places of requests that one search can serve, for fuller batches."""
        alike: dict[Any, list[int]] = {}
        for place, request in enumerate(self.asked):
            # Pictures are told apart by what they are, not by what they show.
            own = [(k, v if isinstance(v, str) else id(v)) for k, v in request.own.items()]
            alike.setdefault((request.seed, *own), []).append(place)
        return list(alike.values())


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
    if kind not in _OUTPUTS:
        raise InputError(
            f"output_type must be one of {', '.join(_OUTPUTS)}, the pictures as they were judged, "
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
    if generator is None:
        return [secrets.randbits(32) if seed is None else _whole(seed)] * count
    given = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if len(given) not in (1, count) or not all(isinstance(g, torch.Generator) for g in given):
        raise InputError(
            f"generator must be a torch.Generator, or a list of one for each of {count} prompts, "
            f"got {generator!r}."
        )
    drawn = [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in given]
    return drawn if len(drawn) == count else drawn * count


def _whole(seed: Any) -> int:
    try:
        if not isinstance(seed, bool):
            return operator.index(seed)
    except TypeError:
        pass
    raise InputError(f"seed must be an integer, got {seed!r}.")


def _passing(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a callback that ends the call, not a candidate, by what it raises."""

    @functools.wraps(callback)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except Exception as error:
            raise CallbackFailed from error

    return called


def _requests(
    pipe: Any, prompt: str | Sequence[str], seeds: Sequence[int], call: dict[str, Any]
) -> list[Request]:
    """Returns what each prompt asks for, and takes its shares of lists out of the call."""
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    lists = {k: list(v) for k, v in call.items() if "prompt" in k and _is_list_of_texts(v)}
    pictures = {k: found for k in _PICTURES if len(found := _pictures(pipe, k, call.get(k))) > 1}
    if len(texts) > 1:
        lists |= pictures
    elif pictures:
        name, found = next(iter(pictures.items()))
        raise InputError(f"{name} must be one picture for one prompt, got {len(found)}.")
    for name, values in lists.items():
        if len(values) != len(texts):
            raise InputError(
                f"{name} must have one item for each of {len(texts)} prompts, got {len(values)}."
            )
        del call[name]
    asked: list[Request] = []
    for place, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        own = {name: values[place] for name, values in lists.items()}
        before = sum(request.text == text for request in asked)
        seed = seed_for(seed, text, before, "again") if before else seed
        asked.append(Request(text, seed, own))
    return asked


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)


def _pictures(pipe: Any, name: str, value: Any) -> list[Any]:
    """Returns the pictures of which every prompt has one; none of what all prompts share."""
    parts = [getattr(pipe, part, None) for part in ("controlnet", "adapter")]
    takes_one = "strength" in inspect.signature(type(pipe).__call__).parameters or any(parts)
    # Several ControlNets have a list of a picture each, some pipelines one of references.
    several = any(word in type(part).__name__ for part in parts for word in ("Multi", "Union"))
    if isinstance(value, (list, tuple)) and takes_one:
        if several:
            return list(value) if all(isinstance(item, (list, tuple)) for item in value) else []
        return [item[None] if getattr(item, "ndim", 0) == 3 else item for item in value]
    if getattr(value, "ndim", 0) == (3 if name == "mask_image" else 4) and takes_one:
        return [value[place : place + 1] for place in range(len(value))]
    return []
