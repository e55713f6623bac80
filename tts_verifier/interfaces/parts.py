"""The protocols of strategies, generators, rewriters and comparers, required and optional."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

from tts_verifier.errors import RunError
from tts_verifier.images import ImageLike
from tts_verifier.types import Job, Proposal, Sample, Setting, Task, Trial, Verdict

ReturnedT = TypeVar("ReturnedT", Sample, Verdict)


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
        """The number; None = not known. `looks` of a run cannot exceed it."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Carries out proposals.

    A run calls a generator from one thread at a time. If runs in several threads share a generator,
    they may call it at the same time: the package's generators allow this, and a generator of your
    own must allow it too, or say that it does not.
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
        """Returns a list with a sample for each job; that of a failed job has an `error`."""
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
    """The input of a rewriter."""

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
        """Returns a new text for each request; "" or an unchanged text = there is no better one."""
        ...


@runtime_checkable
class Reflects(Protocol):
    """A strategy that proposes `Rewrite`."""

    @property
    def rewriter(self) -> Rewriter | None:
        """Carries out these proposals; None = the strategy makes none."""
        ...


@runtime_checkable
class Comparer(Protocol):
    """Says for each pair of images which one fits its prompt better. Every `Verifier` is one.

    A run compares each pair in both orders, so that a preference for a position cancels out.
    """

    settings: Mapping[str, Setting]
    """Everything that determines a comparison, for the log."""

    def compare(
        self, first: Sequence[ImageLike], second: Sequence[ImageLike], prompts: Sequence[str]
    ) -> list[Verdict]:
        """Returns a verdict for each pair: first[i] against second[i], for prompts[i].

        The verdict's score `preferred`, in [0, 1], says how strongly the first image is preferred;
        NaN = there is no answer. Its text is the reply.
        """
        ...


def check_returned(
    part: object, answers: Any, kind: type[ReturnedT], count: int, what: str
) -> list[ReturnedT]:
    """Checks the kind and the number of a part's answers, and returns them as a list.

    Args:
        part: a generator, a verifier or a comparer.
        answers: what it returned.
        kind: `Sample` or `Verdict`.
        count: how many were asked for.
        what: what each of them is about, such as "images".

    Raises:
        RunError: the kind or the number is wrong.
    """
    listed = answers if isinstance(answers, list | tuple) else [answers]
    other = [one for one in listed if not isinstance(one, kind)]
    if other or len(listed) != count:
        found = f"a {type(other[0]).__name__}" if other else len(listed)
        raise RunError(
            f"{type(part).__name__} must return a {kind.__name__.lower()} for each of {count} "
            f"{what}, in a list; it returned {found}."
        )
    return list(listed)


def is_movable(part: object) -> TypeGuard[Movable]:
    """Returns whether a part has all attributes of `Movable`.

    It does not read them: `nbytes` counts the weights one by one, which takes a while.
    """
    missing, names = object(), ("device", "home", "nbytes", "to")
    return all(inspect.getattr_static(part, name, missing) is not missing for name in names)
