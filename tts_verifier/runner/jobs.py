"""From proposals to jobs: every proposal is checked and given the trials that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tts_verifier.errors import InputError
from tts_verifier.identity import trial_id
from tts_verifier.types import (
    KINDS,
    Budget,
    Continue,
    Draw,
    Job,
    Look,
    Near,
    Proposal,
    Repaint,
    Setting,
    Task,
    Trial,
    parent_of,
)


def bind(
    proposals: Sequence[Proposal],
    task: Task,
    *,
    history: Sequence[Trial],
    settings: Mapping[str, Setting],
    strategy: str,
) -> dict[str, Job]:
    """Returns jobs by the id of the trial that each will make, in order.

    Args:
        proposals: of one round of one prompt.
        task: what the strategy was told.
        history: all trials of that prompt.
        settings: the generator's.
        strategy: its name, for messages.

    Raises:
        InputError: a proposal is not one, was made before, is of a kind that the generator
            cannot serve, or has a parent that it cannot have.
    """
    trials = {trial.id: trial for trial in history}
    jobs: dict[str, Job] = {}
    for proposal in proposals:
        problem = _problem(proposal, task, trials)
        if problem:
            raise InputError(
                f"{strategy} proposed {_short(proposal)} for {task.prompt.text[:60]!r}: {problem}"
            )
        name = trial_id(task.prompt.text, proposal, settings)
        if name in trials or name in jobs:
            raise InputError(
                f"{strategy} proposed {_short(proposal)} twice for {task.prompt.text[:60]!r}. "
                "Give every proposal its own seed."
            )
        jobs[name] = Job(task.prompt, proposal, ancestors(proposal, trials))
    return jobs


def ancestors(proposal: Proposal, trials: Mapping[str, Trial]) -> tuple[Trial, ...]:
    """Returns the trials that a proposal comes from, from the parent to the root."""
    line: list[Trial] = []
    parent = parent_of(proposal)
    while parent is not None:
        line.append(trials[parent])
        parent = line[-1].parent_id
    return tuple(line)


def within(jobs: Mapping[str, Job], left: Budget) -> dict[str, Job]:
    """Returns the first jobs that the candidates and verifier calls left allow."""
    kept: dict[str, Job] = {}
    candidates = 0
    for name, job in jobs.items():
        candidates += not isinstance(job.proposal, Look)
        if left.candidates is not None and candidates > left.candidates:
            break
        if left.verifier_calls is not None and len(kept) >= left.verifier_calls:
            break
        kept[name] = job
    return kept


def share_of(job: Job) -> float:
    """Returns which fraction of a whole drawing's steps a job takes, before rounding to steps."""
    proposal = job.proposal
    if isinstance(proposal, Draw):
        return proposal.until
    if isinstance(proposal, Continue):
        return proposal.until - job.ancestors[0].progress + proposal.renoise
    return proposal.strength if isinstance(proposal, Repaint) else 0.0


def _problem(proposal: Proposal, task: Task, trials: Mapping[str, Trial]) -> str:
    """Returns what is wrong with a proposal, empty if nothing is."""
    if type(proposal) not in KINDS.values():
        return "that is no proposal."
    if type(proposal) not in task.supports:
        return "the generator cannot do that kind."
    noise = getattr(proposal, "noise", None)
    if noise is not None and type(noise) not in task.supports:
        return "the generator cannot draw from such noise."
    parent_id = parent_of(proposal)
    if parent_id is None:
        return ""
    if parent_id not in trials:
        return f"there is no trial {parent_id!r} of this prompt."
    parent = trials[parent_id]
    if isinstance(proposal, Continue) and (parent.progress >= 1 or parent.image is None):
        return "its parent must be an unfinished drawing."
    if isinstance(proposal, Repaint) and not (parent.progress >= 1 and parent.image):
        return "its parent must be a finished drawing."
    if isinstance(proposal, Look) and parent.image is None:
        return "its parent has no image."
    near = isinstance(proposal, Draw) and isinstance(proposal.noise, Near)
    if near and not isinstance(parent.proposal, Draw):
        return "Near needs a parent that was drawn from noise."
    return ""


def _short(proposal: Proposal) -> str:
    text = repr(proposal)
    return text if len(text) <= 160 else f"{text[:160]}…"
