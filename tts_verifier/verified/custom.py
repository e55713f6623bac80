"""The search of a diffusers custom pipeline; see `pipelines/` in the repository."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary

from tts_verifier.errors import InputError
from tts_verifier.generators.diffusers.hooks import exclusive
from tts_verifier.verified.pipeline import VerifiedPipeline

_VERIFIED: Final[WeakKeyDictionary[Any, tuple[Any, VerifiedPipeline]]] = WeakKeyDictionary()
"""For each custom pipeline, its `search` and its wrapped pipeline, so that the verifier loads once.

An entry does not keep its key alive: the wrapped pipeline refers to the attributes only.
"""


def search_as(base: type, pipe: Any) -> VerifiedPipeline:
    """Returns a wrapped pipeline over the components of a custom pipeline.

    Args:
        base: the diffusers class that generates. Inpainting classes are found by its name.
        pipe: an instance of a subclass of it. `pipe.search` is a tuple of the verifier, the
            strategy and the options of a `VerifiedPipeline`; each may be None.

    Raises:
        InputError: the verifier is None.
    """
    # One thread at a time, or the verifier would be loaded twice.
    with exclusive(pipe):
        return _search_as(base, pipe)


def _search_as(base: type, pipe: Any) -> VerifiedPipeline:
    verifier, strategy, options = pipe.search
    if verifier is None:
        raise InputError(
            f"{type(pipe).__name__} needs a verifier, it has none. Give one to from_pretrained: "
            'verifier="GYX97/ImageDoctor".'
        )
    search, verified = _VERIFIED.get(pipe, (None, None))
    # By identity, because a user who wants another verifier sets another tuple.
    if verified is None or search is not pipe.search:
        # The subclass's call is the search, so the wrapped pipeline must be of the base class.
        # `from_pipe` would copy the state; hooks and progress bars set on one object must be set
        # on the other too. Hence an object without `__init__` that shares all attributes.
        view: Any = object.__new__(base)
        object.__setattr__(view, "__dict__", pipe.__dict__)
        verified = VerifiedPipeline(view, verifier, strategy=strategy, **(options or {}))
        _VERIFIED[pipe] = (pipe.search, verified)
    return verified
