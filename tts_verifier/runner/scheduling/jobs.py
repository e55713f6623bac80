"""Turns proposals into jobs: checks each one and adds the trials that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tts_verifier.errors import InputError
from tts_verifier.identity import trial_id
from tts_verifier.types import (
    KINDS,
    CachedDrafts,
    Compare,
    Continue,
    Drafts,
    Draw,
    Job,
    Look,
    Near,
    Proposal,
    Repaint,
    Rewrite,
    Rewritten,
    Setting,
    Task,
    Trial,
    parent_of,
)


def jobs_for(
    proposals: Sequence[Proposal],
    task: Task,
    *,
    history: Sequence[Trial],
    settings: Mapping[str, Setting],
    strategy: str,
    round: int,
) -> list[Job]:
    """Returns a job for each proposal, in order.

    Args:
        proposals: one round of one prompt.
        task: the task that the strategy got.
        history: all earlier trials of the prompt.
        settings: the generator's settings.
        strategy: the strategy's name, for messages.
        round: the number of the round.

    Raises:
        InputError: they are no list; or an item is not a proposal, repeats an earlier one, is of a
            kind that the generator cannot serve, or names a parent of the wrong kind.
    """
    if not isinstance(proposals, list | tuple):
        raise InputError(
            f"{strategy} must return its proposals in a list, which is empty when the search is "
            f"over; it returned a {type(proposals).__name__}."
        )
    trials = {trial.id: trial for trial in history}
    jobs: list[Job] = []
    ids = set(trials)
    for proposal in proposals:
        where = f"{strategy} proposed {_short(proposal)}"
        problem = _problem(proposal, task, trials)
        if problem:
            raise InputError(f"{where} for {task.prompt.text[:60]!r}: {problem}")
        job_id = trial_id(task.prompt.text, proposal, settings, task.prompt.repeat)
        # Equal proposals have equal ids, and the log has one row per id.
        if job_id in ids:
            raise InputError(
                f"{where} twice for {task.prompt.text[:60]!r}. Give every proposal its own seed."
            )
        ids.add(job_id)
        jobs.append(Job(task.prompt, proposal, ancestors(proposal, trials), job_id, round))
    return jobs


def ancestors(proposal: Proposal, trials: Mapping[str, Trial]) -> tuple[Trial, ...]:
    """Returns the trials that a proposal comes from, from the parent to the root.

    For a comparison these are its two images.
    """
    if isinstance(proposal, Compare):
        return trials[proposal.parent], trials[proposal.rival]
    line: list[Trial] = []
    parent = parent_of(proposal)
    while parent is not None:
        line.append(trials[parent])
        parent = line[-1].parent_id
    return tuple(line)


def _problem(proposal: Proposal, task: Task, trials: Mapping[str, Trial]) -> str:
    """Returns what is wrong with a proposal, "" if nothing is."""
    # Exact types, as in the log, which could not restore a subclass.
    if type(proposal) not in KINDS.values():
        return "that is not a proposal."
    if type(proposal) not in task.supports:
        return "the generator cannot serve that kind."
    if isinstance(proposal, Draw) and proposal.rewrite and Rewritten not in task.supports:
        return "the generator cannot draw from a rewritten prompt."
    if isinstance(proposal, Draw) and proposal.pace != 1:
        if Drafts not in task.supports:
            return "the generator cannot draw drafts."
        if not 0 < proposal.pace < 1 or proposal.until != 1 or proposal.noise is not None:
            return "a draft needs a pace in (0, 1], and goes from the seed's noise to the end."
    if isinstance(proposal, Draw) and proposal.cached:
        if CachedDrafts not in task.supports:
            return "the generator cannot draw drafts with a cache."
        if proposal.pace == 1:
            return "only a draft is cached, whose pace is below 1."
    noise = proposal.noise if isinstance(proposal, Draw) else None
    if noise is not None and type(noise) not in task.supports:
        return "the generator cannot start from such noise."
    parent_id = parent_of(proposal)
    if parent_id is None:
        return ""
    rivals = [proposal.rival] if isinstance(proposal, Compare) else []
    for name in (parent_id, *rivals):
        if name not in trials:
            return f"there is no trial {name!r} of this prompt."
        if problem := _problem_with_parent(proposal, trials[name]):
            return problem
    return "an image is not compared with itself." if parent_id in rivals else ""


def _problem_with_parent(proposal: Proposal, parent: Trial) -> str:
    if isinstance(proposal, Continue) and (parent.progress >= 1 or parent.image is None):
        return "its parent must be an unfinished candidate."
    if isinstance(proposal, Repaint) and not (parent.progress >= 1 and parent.image):
        return "its parent must be a finished candidate."
    if isinstance(proposal, Look) and parent.image is None:
        return "its parent has no image."
    if isinstance(proposal, Draw) and proposal.rewrite:
        if proposal.noise is not None or not isinstance(parent.proposal, Rewrite):
            return "a rewritten prompt is that of a rewrite, and needs noise of its own."
        return ""
    if isinstance(proposal, Rewrite) and parent.verdict is None:
        return "its parent has no verdict to rewrite from."
    if isinstance(proposal, Compare) and not (parent.progress >= 1 and parent.image):
        return "its images must be finished."
    near = isinstance(proposal, Draw) and isinstance(proposal.noise, Near)
    if near and not isinstance(parent.proposal, Draw):
        # Only a draw has initial noise of its own.
        return "Near needs a parent that was generated from noise."
    return ""


def _short(proposal: Proposal) -> str:
    text = repr(proposal)
    return text if len(text) <= 160 else f"{text[:160]}…"
