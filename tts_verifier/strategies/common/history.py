"""Questions that strategies ask about a history, and the seeds of their proposals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tts_verifier.choice.objective import order
from tts_verifier.identity import seed_for
from tts_verifier.types import Draw, Look, Proposal, Task, Trial


def best(trials: Sequence[Trial], count: int = 1) -> list[Trial]:
    """Returns the `count` best trials, best first; an objective of NaN comes last."""
    return [trials[i] for i in order([t.objective for t in trials])[:count]]


def seeds(task: Task, count: int, *, first: int = 0, purpose: str = "draw") -> list[int]:
    """Returns the seeds number `first` to `first + count - 1` of a purpose."""
    return [seed_for(task.seed, task.prompt.text, first + i, purpose) for i in range(count)]


def rounds_done(history: Sequence[Trial]) -> int:
    """Returns the number of rounds that generated images; a `Look` generates none."""
    return len({t.round for t in history if not isinstance(t.proposal, Look)})


def unfinished(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the previews that `Continue` can start from, also those without a usable score."""
    return [t for t in trials if t.progress < 1 and t.image is not None]


def propose_at_stops(
    task: Task,
    history: Sequence[Trial],
    *,
    n: int,
    stops: Sequence[float],
    proceed: Callable[[int, list[Trial]], list[Proposal]],
) -> list[Proposal]:
    """Proposes `n` previews at the first stop, and lets `proceed` decide at every other stop.

    Args:
        task: as in `Strategy.propose`.
        history: as in `Strategy.propose`.
        n: previews of the first round.
        stops: fractions of the denoising steps at which images are verified, rising to 1.
        proceed: (index of the next stop, usable previews of the last round) -> proposals up to
            that stop; not called without a preview.

    Returns:
        Proposals; none after the last stop.
    """
    level = rounds_done(history)
    if level == len(stops):
        return []
    if level == 0:
        return [Draw(seed, stops[0]) for seed in seeds(task, n)]
    previews = unfinished([t for t in history if t.round == history[-1].round])
    return proceed(level, previews) if previews else []
