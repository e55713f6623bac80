"""What a step measures: rewards, the metrics of replies, and the seconds of its parts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.training.grpo.rewards import SCORE_REWARDS, total_rewards
from tts_verifier.training.grpo.rewards.terms import Scaling, score_factor
from tts_verifier.training.grpo.rollouts import Group


@dataclass(frozen=True, slots=True, eq=False)
class Rewarded:
    """The rewards of a process' replies."""

    totals: Tensor
    """float64 (groups, replies), the weighted sums."""
    terms: Mapping[str, NDArray[np.float64]]
    """Reward -> (groups * replies,)."""
    unread: int
    """Replies without all four scores."""
    bounded: int = 0
    """Replies with a score so far from [0, 1] that its reward was raised to the lowest."""


class OfficialRewards:
    """Rewards replies by the official rewards.

    Args:
        weights: reward -> weight.
        scaling: see `rewards.official`.
        bound_scores: see `GrpoSettings`.
    """

    def __init__(
        self, weights: Mapping[str, float], scaling: Scaling, *, bound_scores: bool = True
    ) -> None:
        self.weights, self._scaling, self._bound_scores = weights, scaling, bound_scores

    def __call__(self, groups: Sequence[Group]) -> Rewarded:
        """Rewards the replies of groups."""
        pairs = [(group.prompt, reply) for group in groups for reply in group.replies]
        table = total_rewards(
            [prompt.prompt for prompt, _ in pairs],
            [reply.text for _, reply in pairs],
            [reply.ids for _, reply in pairs],
            names=tuple(self.weights),
            scaling=self._scaling,
            scores=[prompt.scores for prompt, _ in pairs],
            misalignment_map=[prompt.misalignment for prompt, _ in pairs],
            artifact_map=[prompt.artifact for prompt, _ in pairs],
            predicted_misalignment=[reply.maps.get("misalignment") for _, reply in pairs],
            predicted_artifact=[reply.maps.get("artifact") for _, reply in pairs],
        )
        terms, bounded = table.terms, np.zeros(len(pairs), bool)
        if self._bound_scores:
            terms, bounded = bounded_scores(terms, self._scaling)
        total = np.sum([weight * terms[name] for name, weight in self.weights.items()], axis=0)
        totals = torch.from_numpy(total).view(len(groups), -1)
        return Rewarded(totals, terms, int((~table.complete).sum()), int(bounded.sum()))


def bounded_scores(
    terms: Mapping[str, NDArray[np.float64]], scaling: Scaling
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    """Raises rewards of scores that are below all that scores in [0, 1] can get.

    A single "60" instead of "0.60" would otherwise decide the advantages of its whole group.

    Args:
        terms: reward -> (N,).
        scaling: of the rewards.

    Returns:
        The terms, and bool (N,), where one was raised.
    """
    lowest = 1 - score_factor(scaling)
    raised = np.zeros(len(next(iter(terms.values()))), bool)
    found = dict(terms)
    for name in terms.keys() & set(SCORE_REWARDS):
        raised |= terms[name] < lowest
        found[name] = np.maximum(terms[name], lowest)
    return found, raised


def counts_of(groups: Sequence[Group], rewarded: Rewarded, kept: Sequence[int]) -> dict[str, float]:
    """Returns the sums of a process' replies that metrics and losses are computed from.

    Args:
        groups: of the process.
        rewarded: their replies.
        kept: the numbers of the groups whose rewards differ.
    """
    replies = [reply for group in groups for reply in group.replies]
    counted = [reply for i in kept for reply in groups[i].replies]
    return {
        "groups": len(groups),
        "kept_groups": len(kept),
        "replies": len(replies),
        "kept_replies": len(counted),
        "tokens": sum(len(reply.ids) for reply in replies),
        "kept_tokens": sum(len(reply.ids) for reply in counted),
        "unread": rewarded.unread,
        "bounded": rewarded.bounded,
        "surprise": -sum(float(reply.log_probs.sum()) for reply in replies),
        "reward": float(rewarded.totals.sum()),
        **{f"reward_{name}": float(values.sum()) for name, values in rewarded.terms.items()},
    }


def means_of(sums: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of a step's replies from the sums over all processes.

    `entropy` is the mean of -log p of the drawn tokens, an estimate of the entropy of a token.
    """
    replies = sums["replies"]
    return {
        **{n: value / replies for n, value in sums.items() if n.startswith("reward")},
        "entropy": sums["surprise"] / sums["tokens"],
        "length": sums["tokens"] / replies,
        "unread_share": sums["unread"] / replies,
        "bounded_share": sums["bounded"] / replies,
        "no_variance_share": 1 - sums["kept_groups"] / sums["groups"],
        "rows": replies,
        "tokens": sums["tokens"],
    }


def sum_over_processes(accelerator: Accelerator, counted: Mapping[str, float]) -> dict[str, float]:
    """Returns the sums of numbers over all processes."""
    values = torch.tensor([*counted.values()], dtype=torch.float64, device=accelerator.device)
    return dict(zip(counted, accelerator.reduce(values, "sum").tolist(), strict=True))


class Seconds:
    """Counts the seconds of the parts of a step.

    Args:
        device: waited for at the end of each part.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.spent: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Counts the time of its block for a part."""
        began = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - began
