"""The base class of verifiers, and what its callers check."""

from __future__ import annotations

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations, takewhile
from pathlib import Path
from typing import Any, Final, Unpack

from PIL import Image

from tts_verifier.choice.objective import Objective, as_objective, order
from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.choice.tournament import both_orders, check_near_ties, standings
from tts_verifier.choice.views import PREFERRED, compare_by_views
from tts_verifier.errors import InputError, RunError, RunWarning, UnsupportedError
from tts_verifier.images import ImageLike, as_images, as_list
from tts_verifier.interfaces.options import ImageDoctorOptions
from tts_verifier.registry import builder
from tts_verifier.types import Detail, Setting, Verdict

_HALF_LETTER: Final = re.compile("[\ud800-\udfff]")


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
        ties: int = 0,
        near: float = 0.0,
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
            ties: compares the best so many in pairs in the end, as far as their objectives are
                within `near` of the best, and sorts them by these comparisons (see `compare`);
                each pair is compared in both orders. 0 = none; else at least 2.
            near: how much less than the best objective an image may have to be compared with it.

        Returns:
            A sequence of `(index, image, objective, verdict)`, best first; images without a
            usable score come last; a warning says so if there is no other. `verdict.detail` says
            how an image was verified.

        Raises:
            InputError: there is no image, or one is not usable; `prompt` is not one text; the
                objective names a score that the verifier does not give; `looks` is no number from
                1 to that of the images; `ties` or `near` is not usable. A comparison that fails
                is a warning.
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
        check_near_ties(ties, near)
        detail: Detail = "diagnose" if looks is None else "score"
        given = self.verify(converted, [prompt] * len(converted), detail=detail)
        verdicts = check_verdicts(self, given, len(converted), "images")
        if isinstance(chosen, Objective):
            chosen.check_names(names_of_scores(verdicts))
        values = _objectives_of(chosen, verdicts)
        if all(map(math.isnan, values)):
            why = next((v.error for v in verdicts if v.error), "the objective is NaN for each")
            warnings.warn(
                f"No image has a usable score, so their order means nothing: {why}",
                RunWarning,
                stacklevel=2,
            )
        rows = enumerate(zip(converted, values, verdicts, strict=True))
        items = [Ranked(i, image, value, verdict) for i, (image, value, verdict) in rows]
        items = [items[i] for i in order([item.objective for item in items])]
        if looks is not None:
            items[:looks] = self._diagnosed(items[:looks], prompt, chosen)
        count = _tied(items[:ties], near)
        items[:count] = self._compared(items[:count], prompt)
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
        given = self.verify([item.image for item in items], [prompt] * len(items))
        verdicts = check_verdicts(self, given, len(items), "images")
        values = _objectives_of(objective, verdicts)
        diagnosed = []
        for item, full, value in zip(items, verdicts, values, strict=True):
            quick = item.verdict
            value, kept = (item.objective, quick) if math.isnan(value) else (value, full)
            verdict = replace(kept, cost=quick.cost + full.cost)
            diagnosed.append(Ranked(item.index, item.image, value, verdict))
        return [diagnosed[i] for i in order(values)]

    def _compared(self, items: Sequence[Ranked], prompt: str) -> list[Ranked]:
        """Compares images in pairs, in both orders, and sorts them by their preferences."""
        pairs = list(permutations(range(len(items)), 2))
        if not pairs:
            return list(items)
        first, second = ([items[pair[side]].image for pair in pairs] for side in (0, 1))
        try:
            answers = self.compare(first, second, [prompt] * len(pairs))
            verdicts = check_verdicts(self, answers, len(pairs), "pairs")
        except Exception as error:  # a comparer may ask a server, and the images are verified
            warnings.warn(
                f"The comparison of the best {len(items)} images failed "
                f"({type(error).__name__}: {error}); they stay in the order of their objectives.",
                RunWarning,
                stacklevel=3,
            )
            return list(items)
        said = [verdict.scores.get(PREFERRED, math.nan) for verdict in verdicts]
        asked = dict(zip(pairs, said, strict=True))
        won = {(i, j): both_orders(asked[i, j], asked[j, i]) for i, j in pairs}
        if failed := sum(map(math.isnan, won.values())) // 2:
            warnings.warn(
                f"{failed} of {len(pairs) // 2} comparisons have no usable preference, and count "
                "as ties.",
                RunWarning,
                stacklevel=3,
            )
        won = {pair: 0.5 if math.isnan(value) else value for pair, value in won.items()}
        return [items[i] for i in standings(range(len(items)), won)]

    def _check_looks(self, looks: int, count: int) -> None:
        # bool is a subclass of int.
        if isinstance(looks, bool) or not isinstance(looks, int) or not 1 <= looks <= count:
            raise InputError(
                f"looks must be a number from 1 to {count}, the number of images, got {looks!r}.",
                argument="looks",
            )
        check_quick(self, type(self).__name__)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, **options: Unpack[ImageDoctorOptions]
    ) -> Verifier:
        """Loads an ImageDoctor: `"shapes"` (bundled), a folder, or a hub id.

        Args:
            name_or_path: see above.
            **options: see `ImageDoctorOptions`.

        Raises:
            CheckpointError: the checkpoint cannot be found, or its parts do not fit together.
            InputError: an option is unknown or not usable.
            UnsupportedError: a subclass that loads otherwise; call the class.
        """
        if cls is not Verifier:
            raise UnsupportedError(
                f"{cls.__name__} is made by its constructor and has no from_pretrained. Call "
                f"{cls.__name__}(...), or Verifier.from_pretrained for an ImageDoctor."
            )
        # Found by name: the interface must not import its implementations.
        verifier: Verifier = builder("verifier", "imagedoctor")(name_or_path, **options)
        return verifier


def _tied(items: Sequence[Ranked], near: float) -> int:
    """Returns how many of the first images may be as good as the best one; 0 if there is none."""
    alike = takewhile(
        # Sums of floats are not exact: 0.9 is within 0.1 of 1.
        lambda item: (
            item.verdict.detail == items[0].verdict.detail
            and item.objective >= items[0].objective - near - 1e-9
        ),
        items,
    )
    return sum(1 for _ in alike)


def _objectives_of(
    objective: Callable[[Mapping[str, float]], float], verdicts: Sequence[Verdict]
) -> list[float]:
    """Returns the objectives of the images of one prompt, all verified in the same detail."""
    scores = [verdict.scores for verdict in verdicts]
    if isinstance(objective, Objective):
        return objective.among(scores)
    try:
        return [float(objective(row)) for row in scores]
    except Exception as error:  # a user's function raises anything
        raise InputError(
            "An objective that is a function must take scores by name and return a number; it "
            f"raised {error!r} for the scores {', '.join(scores[0])}.",
            argument="objective",
        ) from error


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


def check_verdicts(part: object, verdicts: Any, count: int, what: str) -> list[Verdict]:
    """Returns the verdicts of a part as a list, if there are as many as were asked for.

    Args:
        part: a verifier or a comparer.
        verdicts: what it returned.
        count: how many were asked for.
        what: they are about, such as "images".

    Raises:
        RunError: it is no such list.
    """
    listed = verdicts if isinstance(verdicts, list | tuple) else [verdicts]
    others = [type(one).__name__ for one in listed if not isinstance(one, Verdict)]
    if others or len(listed) != count:
        found = f"a {others[0]}" if others else len(listed)
        raise RunError(
            f"{type(part).__name__} must return a verdict for each of {count} {what}, in a list; "
            f"it returned {found}."
        )
    return list(listed)


def check_detail(detail: object) -> None:
    """Raises InputError unless a value is a detail."""
    if detail not in ("score", "diagnose"):
        raise InputError(f"detail must be 'score' or 'diagnose', got {detail!r}.")


def check_pairs(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
    """Returns the prompts as a list, if there is one for each image.

    Args:
        images: from `as_images`.
        prompts: a list, a tuple, a pandas Series or the like; a text would be one for each letter.

    Raises:
        InputError: `prompts` is no list, one of them is no text or has a lone surrogate, or the
            lengths differ.
    """
    listed = as_list(prompts, "prompts")
    for place, prompt in enumerate(listed):
        if not isinstance(prompt, str):
            raise InputError(f"Prompt {place} must be a text, got {prompt!r:.80}.")
        # A half of a letter, as JSON can hold it; no tokenizer and no file takes it.
        if not prompt.isascii() and _HALF_LETTER.search(prompt):
            raise InputError(
                f"Prompt {place} must be valid Unicode, {prompt!r:.80} has a lone surrogate."
            )
    if len(images) != len(listed):
        raise InputError(
            f"verify needs one prompt for each image, got {len(images)} images and "
            f"{len(listed)} prompts. For one prompt and many images use rerank."
        )
    return listed
