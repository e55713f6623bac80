"""An ensemble: several verifiers as one, whose verdict has the scores of all of them.

How the scores become one number is the objective's part (`choice.objective`): a weighted sum, the
worst score, the mean rank or a lexicographic order, and what becomes of a missing score.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from tts_verifier import registry
from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError, RunError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import (
    Verifier,
    check_detail,
    check_pairs,
    check_verdicts,
    details_of,
)
from tts_verifier.types import Cost, Detail, Heatmaps, Setting, Verdict

_DETAILS: Final[tuple[Detail, ...]] = ("score", "diagnose")


class Ensemble(Verifier):
    """Asks several verifiers about every image and returns all scores in one verdict.

    The score `overall` of the member `doctor` is `doctor_overall`; heatmaps are named likewise, and
    boxes are those of all members. Each member stays on the device where it was loaded. One verdict
    of the ensemble counts as one verifier call.

    As safe to share between threads as its members.

    Args:
        members: name -> a verifier, or a table of its `name` in the registry and its arguments.

    Raises:
        InputError: there are no members, or one cannot be built.
    """

    def __init__(self, members: Mapping[str, Verifier | Mapping[str, Any]]) -> None:
        if not isinstance(members, Mapping) or not members:
            raise InputError(
                "An ensemble needs members by name, such as {'doctor': {'name': 'imagedoctor', "
                f"'model': 'shapes'}}}}, got {members!r:.200}.",
                argument="members",
            )
        self.members = {name: _member(name, member) for name, member in members.items()}
        self.settings: Mapping[str, Setting] = {"verifier": "ensemble"} | {
            f"{name}.{key}": value
            for name, member in self.members.items()
            for key, value in member.settings.items()
        }
        self.score_names = self._score_names()
        different = {d for member in self.members.values() for d in details_of(member)}
        # With members of "score" alone beside others of "diagnose" alone, nothing differs.
        both = any(len(details_of(member)) == 2 for member in self.members.values())
        only: Detail = "diagnose" if "diagnose" in different else "score"
        self.details: Collection[Detail] = _DETAILS if both else (only,)
        self.objective = self._mean_of_objectives()

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Returns the verdict of all members on image i for prompt i.

        Raises:
            InputError: an image or a prompt is not usable, or the lengths differ.
            RunError: a member returns another number of verdicts.
        """
        check_detail(detail)
        converted = as_images(images)
        texts = check_pairs(converted, prompts)
        columns: list[list[Verdict]] = []
        for name, member in self.members.items():
            verdicts = member.verify(converted, texts, detail=detail)
            try:
                columns.append(check_verdicts(member, verdicts, len(converted), "images"))
            except RunError as error:
                raise RunError(f"The member {name}: {error}") from None
        return [self._merged(row, detail) for row in zip(*columns, strict=True)]

    def _merged(self, verdicts: Sequence[Verdict], detail: Detail) -> Verdict:
        named = list(zip(self.members, verdicts, strict=True))
        scores = [(f"{n}_{k}", value) for n, v in named for k, value in v.scores.items()]
        maps = [(f"{n}_{k}", m) for n, v in named for k, m in v.heatmaps.stored.items()]
        _check_once("score", [name for name, _ in scores])
        _check_once("heatmap", [name for name, _ in maps])
        texts = [f"{name}: {verdict.text}" for name, verdict in named if verdict.text]
        errors = [f"{name}: {verdict.error}" for name, verdict in named if verdict.error]
        return Verdict(
            dict(scores),
            Heatmaps(dict(maps)),
            tuple(box for verdict in verdicts for box in verdict.boxes),
            "\n".join(texts),
            detail,
            # A budget's verifier calls count verdicts on an image, whoever takes part in them.
            Cost(verifier_calls=1),
            "; ".join(errors),
        )

    def _score_names(self) -> Collection[str] | None:
        """Returns the names of all scores, None if one member does not say its own."""
        names: list[str] = []
        for name, member in self.members.items():
            if member.score_names is None:
                return None
            names += [f"{name}_{score}" for score in member.score_names]
        _check_once("score", names)
        return tuple(names)

    def _mean_of_objectives(self) -> Objective:
        """Returns the mean of the members' own objectives, each with its weights."""
        count = len(self.members)
        return Objective(
            {
                f"{name}_{score}": weight / count
                for name, member in self.members.items()
                for score, weight in member.objective.weights.items()
            }
        )


def _check_once(what: str, names: Sequence[str]) -> None:
    """Raises InputError where two members would write under one name."""
    # Asked of each picture: counting each name would take a tenth of a millisecond.
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"Each {what} of an ensemble needs a name of its own, {twice} comes twice. Give a "
            "member another name.",
            argument="members",
        )


def _member(name: object, member: object) -> Verifier:
    if not isinstance(name, str) or not name.isidentifier():
        raise InputError(
            f"A member's name must be a word, since its scores are NAME_SCORE, got {name!r}.",
            argument="members",
        )
    if isinstance(member, Mapping):
        try:
            verifier: Verifier = registry.built("verifier", member)
            return verifier
        except InputError as error:
            place = ".".join(filter(None, ("members", name, error.argument)))
            raise InputError(f"The member {name}: {error}", argument=place) from error
    if not isinstance(member, Verifier):
        raise InputError(
            f"The member {name} must be a verifier or a table with its name, got {member!r:.200}.",
            argument=f"members.{name}",
        )
    return member
