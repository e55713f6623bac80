"""Choosing the next token: the repetition penalty, the choice, recorded probabilities.

Decoding is greedy. Sampling would be another `ChooseToken`, which would also need a seed for
every sequence, so that a reply does not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ChooseToken = Callable[[Tensor], Tensor]
"""Logits (sequences, choices), float32 -> each sequence's choice (sequences,), int64.

It runs inside a captured CUDA graph, so it must neither read values on the host nor bring any
from there, unless the engine was told not to capture."""


def greedy(logits: Tensor) -> Tensor:
    """Chooses the token with the highest logit, the first of equal ones."""
    return logits.argmax(-1)


def penalise(logits: Tensor, used: Tensor, penalty: float) -> Tensor:
    """Lowers the logits of tokens that a sequence has used already.

    Source: Keskar et al. 2019 (CTRL), section 4.1, with transformers' rule for negative logits.

    Args:
        logits: (sequences, vocabulary).
        used: (sequences, vocabulary), bool, True for tokens of the prompt and the reply.
        penalty: above 1 lowers a logit, 1 changes nothing.

    Returns:
        (sequences, vocabulary).
    """
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(used, penalised, logits)


def group_probs(logits: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Returns the probabilities of watched tokens, each group normalised over itself.

    Args:
        logits: (sequences, vocabulary), before any penalty.
        groups: token ids of each group.

    Returns:
        (sequences, tokens of all groups) in [0, 1].
    """
    return torch.cat([logits[:, group].softmax(-1) for group in groups], -1)
