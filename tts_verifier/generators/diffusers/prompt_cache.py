"""Encodes every prompt once, and alone, however many candidates are generated for it.

While a pipeline is called, the cache answers its `encode_prompt`. Each prompt is encoded alone,
together with its negative prompt, and the rows of a batch are concatenated from these results.
A prompt's encoding therefore does not depend on its neighbours in the batch either. Some families
pad encodings to the longest prompt of the batch; these cannot be concatenated, and the pipeline
then encodes a mixed batch itself.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tts_verifier.generators.diffusers.hooks import replaced_attribute

CACHE_BYTES: Final = 2**29
"""Default size of a cache: some hundred prompts of the largest encoders, all prompts of small
ones."""


class _CannotConcatenate(Exception):
    """Encodings of single prompts do not form a batch."""


class PromptCache:
    """The encodings of the prompts so far, the least recently used ones dropped when it is full.

    It is valid as long as the weights of the pipeline do not change. Not safe to share between
    threads; a generator uses it with its pipeline's lock.

    Args:
        max_bytes: how much memory the encodings may take, on the device where they are.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._encodings: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0

    @contextmanager
    def applied_to(self, pipe: Any) -> Iterator[None]:
        """Answers the `encode_prompt` of a pipeline inside the `with` block."""
        own = getattr(pipe, "encode_prompt", None)
        signature = inspect.signature(own) if own else inspect.Signature()
        names = {parameter.kind: name for name, parameter in signature.parameters.items()}
        # The arguments of a user's own `*args` method have no names, so prompts cannot be found.
        if own is None or inspect.Parameter.VAR_POSITIONAL in names:
            yield
            return
        var_keyword = names.get(inspect.Parameter.VAR_KEYWORD, "")

        def encode(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs).arguments
            arguments = {**bound.pop(var_keyword, {}), **bound}
            return self._encode_batch(own, arguments, type(pipe).__name__)

        with replaced_attribute(pipe, "encode_prompt", encode):
            yield

    def _encode_batch(
        self, own: Callable[..., Any], arguments: Mapping[str, Any], family: str
    ) -> Any:
        """Returns what `own` returns for these arguments, from single encodings if possible."""
        prompts = {k: v for k, v in arguments.items() if _is_prompt_list(k, v)}
        others = {k: v for k, v in arguments.items() if k not in prompts}
        count = len(prompts.get("prompt", ()))
        same_length = all(len(value) == count for value in prompts.values())
        if not count or not same_length or not all(map(_has_unique_repr, others.values())):
            return own(**arguments)
        fixed = (family, *((name, repr(value)) for name, value in others.items()))
        encodings = []
        for row in range(count):
            single = {name: [value[row]] for name, value in prompts.items()}
            key = (fixed, *((name, *value) for name, value in single.items()))
            encodings.append(self._encode_single(own, {**arguments, **single}, key))
        try:
            return _concatenated(encodings)
        except _CannotConcatenate:
            return own(**arguments)

    def _encode_single(
        self, own: Callable[..., Any], arguments: Mapping[str, Any], key: Hashable
    ) -> Any:
        if key not in self._encodings:
            self._encodings[key] = own(**arguments)
            self._bytes += _encoding_bytes(self._encodings[key])
        self._encodings.move_to_end(key)
        # Looked up first, because an encoding larger than the whole cache is dropped at once.
        encoding = self._encodings[key]
        while self._bytes > self._max_bytes:
            self._bytes -= _encoding_bytes(self._encodings.popitem(last=False)[1])
        return encoding


def _is_prompt_list(name: str, value: Any) -> bool:
    return "prompt" in name and isinstance(value, list) and all(isinstance(v, str) for v in value)


def _has_unique_repr(value: Any) -> bool:
    """Says whether two different values of this type never have the same repr."""
    # A tensor's repr abbreviates it, and an object's may show an address that is used again.
    import torch

    if isinstance(value, list):
        return all(map(_has_unique_repr, value))
    return value is None or isinstance(value, (str, int, float, torch.device, torch.dtype))


def _encoding_bytes(encoding: Any) -> int:
    if isinstance(encoding, (tuple, list)):
        return sum(map(_encoding_bytes, encoding))
    return int(getattr(encoding, "nbytes", 0))


def _concatenated(encodings: Sequence[Any]) -> Any:
    """Returns the encodings of single prompts as one batch, as the pipeline would return it."""
    import torch

    first = encodings[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(_concatenated(column) for column in zip(*encodings, strict=True))
    if isinstance(first, list) and len(first) == 1:
        return [item for encoding in encodings for item in encoding]
    if not isinstance(first, torch.Tensor) or any(e.shape != first.shape for e in encodings):
        raise _CannotConcatenate
    if first.ndim and first.shape[0] == 1:
        return torch.cat(list(encodings))
    if first.ndim < 2:
        raise _CannotConcatenate
    # The tensor has no batch axis and is the same for every prompt: the positions of the tokens.
    return first.clone()
