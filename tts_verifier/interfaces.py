"""The interfaces of the parts: strategies, generators and verifiers.

Methods take lists and return lists of the same length in the same order. Third parties implement
these interfaces; `testing` has checks for each. `registry` finds the package's own classes by name.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

from PIL import Image

from tts_verifier.choice.objective import Objective, as_objective, order
from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.choice.views import compare_by_views
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.images import ImageLike, as_images, as_list
from tts_verifier.registry import builder
from tts_verifier.types import Detail, Job, Proposal, Sample, Setting, Task, Trial, Verdict


@runtime_checkable
class Strategy(Protocol):
    """Decides what to generate next, as a pure function of the history. Keeps no state.

    Safe to share between threads: one object serves many prompts and runs.
    """

    needs: frozenset[type]
    """The kinds of proposal and noise that it uses; checked before any weights are loaded."""

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        """Returns the next round of proposals for one prompt; an empty list ends the search.

        Args:
            task: the prompt, the run's seed, the generator's abilities, the remaining budget.
            history: the trials of that prompt, round by round; every round is complete.
        """
        ...


@runtime_checkable
class Extendable(Protocol):
    """A strategy with arguments that may grow when a run is continued."""

    grows: Collection[str]
    """Names of constructor arguments. A larger value extends a finished run."""


@runtime_checkable
class ReadsScores(Protocol):
    """A strategy that reads scores by their names, besides the objective."""

    reads: Collection[str]
    """Names of these scores. A run refuses those that its verifier does not give."""


@runtime_checkable
class SaysMost(Protocol):
    """A strategy that says how many finished images a prompt has at most."""

    @property
    def most(self) -> int | None:
        """The number; None = not known. A run cannot look at more of them."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Carries out proposals.

    One run calls it from one thread at a time, and runs of several threads at once if they share
    it. The package's generators are safe for that; another one must be, or say that it is not.
    """

    supports: frozenset[type]
    """The kinds of proposal and of noise (`Near`, `LowBand`) that it can serve."""
    settings: Mapping[str, Setting]
    """Everything but the seed that determines an image; each setting is a column of the log."""

    # In a protocol, a property accepts a plain attribute too; an attribute refuses a property.
    @property
    def batch_size(self) -> int:
        """The number of jobs in a full batch; a plain attribute is fine too."""
        ...

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Returns a sample for each job; a failed job gives a sample with an `error`."""
        ...


@runtime_checkable
class ExplainsLimits(Protocol):
    """A generator that says why it cannot serve a kind of proposal."""

    lacks: Mapping[type, str]
    """The reason for each kind of proposal or noise; "" for a kind that it can serve."""


@runtime_checkable
class Placed(Protocol):
    """A generator or verifier that says where it computes."""

    device: Any
    """The device, such as "cuda:0"; None = unknown."""


class Movable(Protocol):
    """A generator or verifier that the runner may move between devices."""

    device: Any
    """The device that its weights are on."""
    home: str | None
    """The device to compute on, if there was no room for the weights when they were loaded; else
    None."""

    @property
    def nbytes(self) -> int | None:
        """Bytes of its weights; None where they must not be moved."""
        ...

    def to(self, device: str) -> object:
        """Moves its weights to a device."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RewriteRequest:
    """What a rewriter may know."""

    prompt: str
    """What the user asked for."""
    asked: str
    """The text that the image was generated from: the prompt, or an earlier rewriting."""
    trial: Trial
    """The image with its verdict: scores, boxes and the reply."""


@runtime_checkable
class Rewriter(Protocol):
    """Rewrites prompts from what a verifier found wrong."""

    settings: Mapping[str, Setting]
    """Everything that determines a text, for the log."""

    def rewrite(self, requests: Sequence[RewriteRequest]) -> list[str]:
        """Returns a new text for each request; the text asked for, or "", = no better one."""
        ...


@runtime_checkable
class Reflects(Protocol):
    """A strategy that proposes `Rewrite`."""

    @property
    def rewriter(self) -> Rewriter | None:
        """Carries these proposals out; None = there are none."""
        ...


@runtime_checkable
class Comparer(Protocol):
    """Says of pairs of images which one fits its prompt better. Every `Verifier` is one.

    A run asks about each pair in both orders, so a preference for a position cancels out.
    """

    settings: Mapping[str, Setting]
    """Everything that determines a comparison, for the log."""

    def compare(
        self, first: Sequence[ImageLike], second: Sequence[ImageLike], prompts: Sequence[str]
    ) -> list[Verdict]:
        """Returns a verdict for each pair i: of first[i] and second[i], for prompt i.

        Its score `preferred` is how far the first image is preferred, in [0, 1], or NaN if there
        is no answer; its text is the reply.
        """
        ...


def is_movable(part: object) -> TypeGuard[Movable]:
    """Returns whether a part has all attributes of `Movable`.

    It does not read them: `nbytes` counts the weights one by one, which takes a while.
    """
    missing, names = object(), ("device", "home", "nbytes", "to")
    return all(inspect.getattr_static(part, name, missing) is not missing for name in names)


class Verifier(ABC):
    """Says how well images match prompts.

    One run calls it from one thread at a time, and runs of several threads at once if they share
    it. The package's verifiers are safe for that; another one must be, or say that it is not.
    """

    settings: Mapping[str, Setting] = {}
    """Everything that determines a verdict (model, revision, dtype, fit), for the log."""
    objective: Objective = Objective()
    """The objective that `rerank` sorts by unless it gets another."""
    score_names: Collection[str] | None = None
    """Names of all scores that its verdicts have. With them a misspelt name in an objective is
    refused before anything is drawn; None = with the first verdict."""
    map_names: Collection[str] | None = None
    """Names of all heatmaps that its verdicts may have, so that a missing one can be counted;
    empty = it gives none, None = not known."""
    details: Collection[Detail] = ("score", "diagnose")
    """The details that differ. A verifier whose quick score takes as long as a diagnosis has
    "diagnose" alone, one that gives nothing but scores has "score" alone."""

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
            InputError: an image or a prompt is not usable, or the lengths differ.
        """

    def rerank(
        self,
        images: Sequence[ImageLike],
        prompt: str,
        *,
        objective: Objective
        | Mapping[str, float]
        | Callable[[Mapping[str, float]], float]
        | None = None,
        looks: int | None = None,
    ) -> Ranking:
        """Sorts images by how well they match one prompt.

        Args:
            images: PIL images, numpy arrays, torch tensors or paths (see `images.as_image`).
            prompt: the prompt that they were generated for.
            objective: turns scores by name into a number, or weights by score name; None = the
                verifier's own.
            looks: scores all images quickly, and diagnoses only the best so many. These come first,
                in the order of their diagnoses, then those without a usable one; the others
                follow in that of their quick scores, which is another scale. None = diagnoses all.

        Returns:
            A sequence of `(index, image, objective, verdict)`, best first; images without a
            usable score come last. `verdict.detail` says how an image was verified.

        Raises:
            InputError: there is no image, or one is not usable; `prompt` is not one text; the
                objective names a score that the verifier does not give; `looks` is no number from
                1 to that of the images.
            UnsupportedError: the verifier has no quick score, or no diagnosis.
        """
        if not isinstance(prompt, str):
            raise InputError(
                f"rerank needs one prompt as a text, got a {type(prompt).__name__}. For a prompt "
                "for each image use verify."
            )
        chosen = objective if callable(objective) else as_objective(objective) or self.objective
        if isinstance(chosen, Objective):
            chosen.check_names(self.score_names)
        converted = as_images(images)
        if not converted:
            raise InputError("rerank needs at least one image, got an empty list.")
        if looks is not None:
            self._check_looks(looks, len(converted))
        detail: Detail = "diagnose" if looks is None else "score"
        verdicts = self.verify(converted, [prompt] * len(converted), detail=detail)
        if isinstance(chosen, Objective):
            chosen.check_names(names_of_scores(verdicts))
        values = _objectives_of(chosen, verdicts)
        rows = enumerate(zip(converted, values, verdicts, strict=True))
        items = [Ranked(i, image, value, verdict) for i, (image, value, verdict) in rows]
        items = [items[i] for i in order([item.objective for item in items])]
        if looks is not None:
            items[:looks] = self._diagnosed(items[:looks], prompt, chosen)
        return Ranking(items)

    def compare(
        self, first: Sequence[ImageLike], second: Sequence[ImageLike], prompts: Sequence[str]
    ) -> list[Verdict]:
        """Says of pairs of images which one fits its prompt better; see `Comparer`.

        Every image is diagnosed whole and in four crops that lack a narrow border, since near ties
        come from small errors of reading, which differ from view to view. The mean over the views
        counts: the objective (of expected scores, where there are any) minus the heat of the
        hottest part of the heatmaps. A verifier that can look at two images at once should
        override this.

        Raises:
            InputError: an image or a prompt is not usable, or the lengths differ.
        """
        ones, others = as_images(first), as_images(second)
        texts = check_pairs(ones, prompts)
        check_pairs(others, texts)
        return compare_by_views(self.verify, self.objective, (ones, others), texts)

    def _diagnosed(
        self,
        items: Sequence[Ranked],
        prompt: str,
        objective: Callable[[Mapping[str, float]], float],
    ) -> list[Ranked]:
        """Diagnoses images and sorts them; those without a usable diagnosis stay as they are."""
        verdicts = self.verify([item.image for item in items], [prompt] * len(items))
        values = _objectives_of(objective, verdicts)
        diagnosed = []
        for item, full, value in zip(items, verdicts, values, strict=True):
            quick = item.verdict
            value, kept = (item.objective, quick) if math.isnan(value) else (value, full)
            verdict = replace(kept, cost=quick.cost + full.cost)
            diagnosed.append(Ranked(item.index, item.image, value, verdict))
        return [diagnosed[i] for i in order(values)]

    def _check_looks(self, looks: int, count: int) -> None:
        # bool is a subclass of int.
        if isinstance(looks, bool) or not isinstance(looks, int) or not 1 <= looks <= count:
            raise InputError(
                f"looks must be a number from 1 to {count}, the number of images, got {looks!r}.",
                argument="looks",
            )
        check_quick(self, type(self).__name__)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> Verifier:
        """Loads an ImageDoctor: `"shapes"` (bundled), a folder, or a hub id.

        Keyword arguments go to `ImageDoctor.from_pretrained`. Subclasses override this.
        """
        # Found by name: the interface must not import its implementations.
        verifier: Verifier = builder("verifier", "imagedoctor")(name_or_path, **kwargs)
        return verifier


def _objectives_of(
    objective: Callable[[Mapping[str, float]], float], verdicts: Sequence[Verdict]
) -> list[float]:
    """Returns the objectives of the images of one prompt, all verified in the same detail."""
    scores = [verdict.scores for verdict in verdicts]
    if isinstance(objective, Objective):
        return objective.among(scores)
    return [objective(row) for row in scores]


def check_quick(verifier: Any, name: str) -> None:
    """Raises UnsupportedError unless a verifier has a quick score beside its diagnosis.

    Args:
        verifier: an instance, or its class.
        name: of its class, for the message.
    """
    details = details_of(verifier)
    if not {"score", "diagnose"} <= set(details):
        raise UnsupportedError(
            f"looks needs a verifier with a quick score beside its diagnosis, {name} has "
            f"{' and '.join(details)} only. Leave out looks."
        )


def details_of(verifier: Any) -> Collection[Detail]:
    """Returns the details of a verifier that differ; both if it does not say."""
    details: Collection[Detail] = getattr(verifier, "details", Verifier.details)
    return details


def names_of_scores(verdicts: Iterable[Verdict | None]) -> Collection[str] | None:
    """Returns the names of the scores of some verdicts; None if there is no score."""
    return dict.fromkeys(name for v in verdicts if v is not None for name in v.scores) or None


def check_pairs(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
    """Returns the prompts as a list, if there is one for each image.

    Args:
        images: from `as_images`.
        prompts: a list, a tuple, a pandas Series or the like; a text would be one for each letter.

    Raises:
        InputError: `prompts` is no list, one of them is no text, or the lengths differ.
    """
    listed = as_list(prompts, "prompts")
    for place, prompt in enumerate(listed):
        if not isinstance(prompt, str):
            raise InputError(f"Prompt {place} must be a text, got {prompt!r:.80}.")
    if len(images) != len(listed):
        raise InputError(
            f"verify needs one prompt for each image, got {len(images)} images and "
            f"{len(listed)} prompts. For one prompt and many images use rerank."
        )
    return listed
