"""The interfaces between the parts: what generates, what verifies, what decides.

Lists in, lists out, same length, same order. Third parties implement these; `testing` has
checks for each. The package's own classes are found by name through `registry`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from PIL import Image

from tts_verifier.choice.objective import Objective, order
from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.errors import InputError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.registry import builder
from tts_verifier.types import Detail, Job, Proposal, Sample, Setting, Task, Trial, Verdict


@runtime_checkable
class Strategy(Protocol):
    """Decides what to generate next: a pure function of the history, without state."""

    needs: frozenset[type]
    """The kinds of proposal and noise that it makes; checked before any weights load."""

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Returns the next proposals for one prompt; an empty list means stop.

        Args:
            task: the prompt, the run's seed, what the generator supports, the budget left.
            history: the trials of that prompt, round by round; never part of a round.
        """
        ...


@runtime_checkable
class Extendable(Protocol):
    """A strategy some of whose numbers may grow when a run is continued."""

    grows: Collection[str]
    """Names of constructor arguments: with a larger value a finished run goes on."""


@runtime_checkable
class Generator(Protocol):
    """Carries out proposals. The runner calls it from one thread at a time."""

    supports: frozenset[type]
    """The kinds of proposal that it can serve, and of noise (`Near`, `LowBand`)."""
    settings: Mapping[str, Setting]
    """Everything but the seed that decides an image, one log column each."""

    @property
    def batch_size(self) -> int:
        """How many jobs fill one batch; a plain attribute will do."""
        ...

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Carries out every job; one that fails becomes a sample with an `error`."""
        ...


@runtime_checkable
class ExplainsLimits(Protocol):
    """A generator that says why it cannot serve a kind of proposal."""

    lacks: Mapping[type, str]
    """Kind of proposal or noise -> the reason; empty text where it can."""


@runtime_checkable
class Placed(Protocol):
    """A generator or verifier that says where it computes."""

    device: Any
    """Such as "cuda:0"; None = unknown."""


class Movable(Protocol):
    """A generator or verifier that the runner may move between devices."""

    device: Any
    """Where its weights are."""
    home: str | None
    """Where it is to compute when its weights wait elsewhere at first, else None."""

    @property
    def nbytes(self) -> int | None:
        """Bytes of its weights; None where they must stay where they are."""
        ...

    def to(self, device: str) -> object:
        """Moves its weights."""
        ...


def is_movable(part: object) -> TypeGuard[Movable]:
    """Returns whether a part has all that `Movable` names.

    The attributes are only looked up, not read: `nbytes` counts the weights one by one.
    """
    missing = object()
    names = ("device", "home", "nbytes", "to")
    return all(inspect.getattr_static(part, name, missing) is not missing for name in names)


class Verifier(ABC):
    """Says how well images serve prompts. The runner calls it from one thread at a time."""

    settings: Mapping[str, Setting] = {}
    """Everything that decides a verdict (model, revision, dtype, fit), for the log."""
    objective: Objective = Objective()
    """What `rerank` sorts by when it is given none."""

    @abstractmethod
    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Returns the verdict on image i for prompt i.

        Raises:
            InputError: an image or a prompt cannot be used, or the lengths differ.
        """

    def rerank(
        self,
        images: Sequence[ImageLike],
        prompt: str,
        *,
        objective: Objective | Callable[[Mapping[str, float]], float] | None = None,
    ) -> Ranking:
        """Sorts images by how well they serve one prompt.

        Args:
            images: PIL images, numpy arrays, torch tensors or paths (see `images.as_image`).
            prompt: the one that they were generated for.
            objective: scores by name -> number; None is the verifier's own.

        Returns:
            A sequence of `(index, image, objective, verdict)`, best first; an unusable
            score ranks last.

        Raises:
            InputError: no image, or one that cannot be used.
        """
        if not len(images):
            raise InputError("rerank needs at least one image, got an empty list.")
        pictures = as_images(images)
        verdicts = self.verify(pictures, [prompt] * len(pictures))
        values = [(objective or self.objective)(v.scores) for v in verdicts]
        return Ranking([Ranked(i, pictures[i], values[i], verdicts[i]) for i in order(values)])

    @classmethod
    def from_pretrained(cls, name_or_path: str, **kwargs: Any) -> Verifier:
        """Loads an ImageDoctor: `"shapes"` (bundled), a folder, or a hub id.

        Keyword arguments go to `ImageDoctor.from_pretrained`. A subclass loads itself.
        """
        # By name, so that the interface imports none of its implementations.
        verifier: Verifier = builder("verifier", "imagedoctor")(name_or_path, **kwargs)
        return verifier


def check_pairs(images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    """Raises InputError unless there is one prompt for each image."""
    if len(images) != len(prompts):
        raise InputError(
            f"verify needs one prompt for each image, got {len(images)} images and "
            f"{len(prompts)} prompts. For one prompt and many images use rerank."
        )
