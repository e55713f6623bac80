"""The three seams: what draws, what judges, what decides.

Lists in, lists out, same length, same order. Third parties implement these; the package's
own classes are found by name through `registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from tts_verifier.choice.objective import Objective, order
from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.errors import InputError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.registry import builder
from tts_verifier.types import (
    Detail,
    Job,
    Proposal,
    Sample,
    Setting,
    Task,
    Trial,
    Verdict,
)


@runtime_checkable
class Strategy(Protocol):
    """Decides what to draw next: a pure function of the history."""

    needs: frozenset[type]
    """The kinds of proposal that it makes; checked before any weights load."""

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Returns the next proposals for one prompt; an empty list means stop."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Draws proposals.

    `supports`: kinds of proposal it can serve, and of noise to draw from (`Near`, `LowBand`).
    `settings`: everything but the seed that
    decides a picture, one log column each. It may also say where it computes, and be movable:
    see `devices`; so may a verifier.
    """

    supports: frozenset[type]
    settings: Mapping[str, Setting]

    @property
    def batch_size(self) -> int:
        """How many jobs fill one batch; a plain attribute will do."""
        ...

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Draws every job; a job that fails becomes a sample with an `error`."""
        ...


class Verifier(ABC):
    """Judges images against prompts.

    `settings`: everything that decides a verdict (model, revision, dtype, fit), for the log.
    """

    settings: Mapping[str, Setting] = {}
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
        """Judges image i against prompt i.

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
            prompt: the caption that they were drawn for.
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
        """Loads a verifier: `"shapes"` (bundled), a folder, or a hub id.

        Keyword arguments go to `ImageDoctor.from_pretrained`, which this calls; a subclass
        loads itself.
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
