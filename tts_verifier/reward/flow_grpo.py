"""Rewards in the shapes that flow_grpo calls (github.com/yifan123/flow_grpo, flow_grpo/rewards.py).

flow_grpo's own remote rewards send pickles. With `Remote` as the verifier these functions are the
same calls over HTTP without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np

from tts_verifier.errors import InputError
from tts_verifier.interfaces import Verifier
from tts_verifier.reward.reward import RewardOptions, Rewards, VerifierReward, checked_fill

Scorer = Callable[..., tuple[list[float], dict[str, Any]]]
MultiScore = Callable[..., tuple[dict[str, list[float]], dict[str, Any]]]


def scorer(
    verifier: Verifier | str, *, fill: float | None = None, **options: Unpack[RewardOptions]
) -> Scorer:
    """Returns a scorer for `score_functions` of `multi_score`.

    Args:
        verifier: see `VerifierReward`.
        fill: the reward of a picture that has none; None = NaN, which flow_grpo does not mask: its
            loss is then NaN too. The pictures are counted in any case.
        **options: see `RewardOptions`.

    Returns:
        `fn(images, prompts, metadata) -> (scores, meta)`: a list of N floats, and a dict with
        `heatmap`, a list of N arrays of flaws on the grid or None, `maps`, a list of N dicts of
        arrays by name, and `missing`, see `Rewards`.
    """
    reward, fill = VerifierReward(verifier, **options), checked_fill(fill)

    def score(images: Any, prompts: Sequence[str], metadata: Any = None) -> Any:
        rewards = reward(images, prompts, metadata)
        return _filled(rewards, fill), _meta(rewards)

    return score


def multi_score(
    verifier: Verifier | str, *, fill: float | None = None, **options: Unpack[RewardOptions]
) -> MultiScore:
    """Returns what flow_grpo's `multi_score(device, weights)` returns, for one verifier.

    Args:
        verifier: see `VerifierReward`.
        fill: see `scorer`.
        **options: see `RewardOptions`.

    Returns:
        `fn(images, prompts, metadata, ref_images=None, only_strict=True) -> (details, meta)`: for
        each score a list of N floats, with the reward as `avg`; `meta` as in `scorer`.
    """
    reward, fill = VerifierReward(verifier, **options), checked_fill(fill)

    def score(
        images: Any,
        prompts: Sequence[str],
        metadata: Any = None,
        ref_images: Any = None,
        only_strict: bool = True,
    ) -> Any:
        if ref_images is not None:
            raise InputError("Verifiers compare with no reference image. Leave out ref_images.")
        rewards = reward(images, prompts, metadata)
        details = {name: values.tolist() for name, values in rewards.details.items()}
        return {**details, "avg": _filled(rewards, fill)}, _meta(rewards)

    return score


def _filled(rewards: Rewards, fill: float | None) -> list[float]:
    scores = rewards.scores
    filled = scores if fill is None else np.where(np.isnan(scores), fill, scores)
    return [float(score) for score in filled]


def _meta(rewards: Rewards) -> dict[str, Any]:
    heatmaps: list[Any] = [None] * len(rewards.maps)
    if any(rewards.maps):
        flaws, found = rewards.flaws()
        heatmaps = [flaw if there else None for flaw, there in zip(flaws, found, strict=True)]
    return {"heatmap": heatmaps, "maps": list(rewards.maps), "missing": dict(rewards.missing)}
