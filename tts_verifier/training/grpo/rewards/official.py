"""The twelve rewards under their official names, with the signature of TRL's reward functions.

    reward(prompts, completions, completion_ids=None, *, scaling="code", **columns) -> list[float]

Every column that a reward uses is a list with one entry for each completion:

- `scores`: the truth, a mapping with `semantic_alignment`, `aesthetics`, `plausibility` and
  `overall`, or four numbers in this order, in [0, 1].
- `misalignment_map`, `artifact_map`: the truth, float (H, W) in [0, 1], 1 = flawed. An object that
  occurs several times, as in the completions of one prompt, is read once.
- `predicted_misalignment`, `predicted_artifact`: the rollout's own maps, in [0, 1]; None where the
  completion lacks the token. If either is None, both count as zeros, as in the official trainer.

Other columns are ignored; a missing or wrong one is an `InputError`. `scaling` is "code" for the
official code's factors, "paper" for the paper's. Source: modify/VLM-R1/src/open_r1/
grpo_jsonl_np.py, `reward_funcs_registry`, and trainer/grpo_trainer.py of the official repository;
arXiv 2510.01010.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError, suggestion
from tts_verifier.training.grpo.rewards.batch import RewardBatch
from tts_verifier.training.grpo.rewards.completions import Reals


class Reward(Protocol):
    """A reward function as TRL calls it."""

    __name__: str

    def __call__(
        self,
        prompts: Sequence[Any] | None,
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        *,
        scaling: str = "code",
        **columns: Any,
    ) -> list[float]:
        """Returns one number for each completion."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RewardTable:
    """The rewards of N completions."""

    terms: Mapping[str, Reals]
    """Reward -> float64 (N,), in the order of REWARDS."""
    total: Reals
    """(N,), the plain sum of the terms."""
    complete: NDArray[np.bool_]
    """(N,), whether the completion's answer has all four scores."""


_TERMS: Final[dict[str, Callable[[RewardBatch], Reals]]] = {}
_REWARDS: Final[dict[str, Reward]] = {}


def _official(term: Callable[[RewardBatch], Reals]) -> Reward:
    """Gives a term TRL's signature, under its own name, and enters both."""

    def reward(
        prompts: Sequence[Any] | None,
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        *,
        scaling: str = "code",
        **columns: Any,
    ) -> list[float]:
        rewards: list[float] = term(RewardBatch(prompts, completions, columns, scaling)).tolist()
        return rewards

    reward.__name__ = reward.__qualname__ = term.__name__
    reward.__doc__ = term.__doc__
    _TERMS[term.__name__], _REWARDS[term.__name__] = term, reward
    return reward


@_official
def semantic_score(batch: RewardBatch) -> Reals:
    """1 - 3 |s - truth| of the semantic alignment; 0 without an answer."""
    return batch.score("semantic_alignment")


@_official
def aesthetic_score(batch: RewardBatch) -> Reals:
    """1 - 3 |s - truth| of the aesthetics; 0 without an answer."""
    return batch.score("aesthetics")


@_official
def plausibility_score(batch: RewardBatch) -> Reals:
    """1 - 3 |s - truth| of the plausibility; 0 without an answer."""
    return batch.score("plausibility")


@_official
def overall_score(batch: RewardBatch) -> Reals:
    """1 - 3 |s - truth| of the overall impression; 0 without an answer."""
    return batch.score("overall")


@_official
def misalignment_location_heatmap(batch: RewardBatch) -> Reals:
    """1 - min(80 MSE, 1) of the misalignment map."""
    return batch.heatmap("misalignment")


@_official
def artifact_location_heatmap(batch: RewardBatch) -> Reals:
    """1 - min(40 MSE, 1) of the artifact map."""
    return batch.heatmap("artifact")


@_official
def misalignment_boundingbox_iou(batch: RewardBatch) -> Reals:
    """1 - the mean IoU of pairs of boxes; edge rules by the true misalignment map."""
    return batch.uniqueness("misalignment")


@_official
def artifact_boundingbox_iou(batch: RewardBatch) -> Reals:
    """1 - the mean IoU of pairs of boxes; edge rules by the true artifact map."""
    return batch.uniqueness("artifact")


@_official
def artifact_boundingbox_avepixel(batch: RewardBatch) -> Reals:
    """The mean over the boxes of the mean of the true artifact map inside."""
    return batch.compactness("artifact")


@_official
def misalignment_boundingbox_avepixel(batch: RewardBatch) -> Reals:
    """The mean over the boxes of the mean of the true misalignment map inside."""
    return batch.compactness("misalignment")


@_official
def artifact_boundingbox_union(batch: RewardBatch) -> Reals:
    """The share of the true artifact map inside the boxes."""
    return batch.coverage("artifact")


@_official
def misalignment_boundingbox_union(batch: RewardBatch) -> Reals:
    """The share of the true misalignment map inside the boxes."""
    return batch.coverage("misalignment")


REWARDS: Final[Mapping[str, Reward]] = MappingProxyType(_REWARDS)
"""Official name -> reward, in the order of the official registry."""
SCORE_REWARDS: Final = tuple(name for name in REWARDS if name.endswith("_score"))
"""The rewards of the four scores, the only ones that have no lower end."""
GROUNDING_REWARDS: Final = tuple(name for name in REWARDS if "_boundingbox_" in name)
"""The rewards of the boxes, which an ablation of the paper leaves out."""


def total_rewards(
    prompts: Sequence[Any] | None,
    completions: Sequence[Any],
    completion_ids: Sequence[Any] | None = None,
    *,
    names: Collection[str] = tuple(REWARDS),
    scaling: str = "code",
    **columns: Any,
) -> RewardTable:
    """Computes several rewards and their sum, and reads each completion and map once.

    Args:
        prompts: not read; one for each completion, or None.
        completions: texts, or lists of messages.
        completion_ids: not read.
        names: of REWARDS.
        scaling: "code" or "paper".
        columns: as for each reward; only those that the named rewards use are needed.

    Raises:
        InputError: a name is unknown, or a column is missing or wrong.
    """
    unknown = [name for name in names if name not in _TERMS]
    if unknown or not names:
        found = f"{unknown[0]!r}. {suggestion(unknown[0], _TERMS)}" if unknown else "none."
        raise InputError(f"At least one reward is needed, each by its official name; got {found}")
    batch = RewardBatch(prompts, completions, columns, scaling)
    terms = {name: term(batch) for name, term in _TERMS.items() if name in names}
    total = np.sum(list(terms.values()), axis=0)
    complete = np.logical_and.reduce(batch.answers.found, axis=1)
    return RewardTable(terms, total, complete)
