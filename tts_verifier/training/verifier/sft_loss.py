"""The loss of supervised fine-tuning: text cross-entropy plus weighted errors of both heatmaps.

total = CE(text) + weight * (MSE(artifact) + MSE(misalignment)), as in the official forward with
labels (modify/transformers/modeling_qwen2_5_vl.py). The official code takes one sequence with one
token of each kind. Here sequences are batched, and a map without ground truth does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel, Outputs
from tts_verifier.verifiers.imagedoctor.model.mrope import predicting_positions

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """The losses of a batch, all scalars."""

    total: Tensor
    """`text` + weight * (`artifact` + `misalignment`)."""
    text: Tensor
    """Cross-entropy, averaged over the learned tokens."""
    artifact: Tensor
    """Mean squared error of the artifact maps that count; 0 if none does."""
    misalignment: Tensor
    """Mean squared error of the misalignment maps that count; 0 if none does."""


def loss(
    model: ImageDoctorModel,
    outputs: Outputs,
    labels: Tensor,
    targets: Tensor,
    *,
    grid: Sequence[int],
) -> Losses:
    """Computes the losses of a batch whose images share one grid.

    The host does not wait for the device, so the whole step can be captured in a CUDA graph.

    Args:
        model: gives the heatmap head and the weight of the map losses.
        outputs: the result of its forward pass.
        labels: (B, T), the input ids where the reply is learned, -100 elsewhere.
        targets: (N, 2, 16 rows, 16 columns) in [0, 1], the misalignment and the artifact map of
            the first N of the B sequences. A map does not count if it holds a NaN, or if its
            token is not among the labels.
        grid: (rows, columns) of merged tokens.
    """
    text = text_loss(outputs.logits, labels)
    maps, has_token = _predict_maps(model, outputs, labels[: len(targets)], grid)
    # nan_to_num, because `where` below stops a NaN but not its gradient, 0 * NaN.
    errors = (maps.view_as(targets) - targets.nan_to_num()).square().mean((2, 3))
    counts = has_token & ~targets.isnan().any(3).any(2)
    # At least 1 in the divisor, so a batch without maps has a loss of 0 and not 0 / 0.
    mean_errors = torch.where(counts, errors, 0.0).sum(0) / counts.sum(0).clamp(min=1)
    misalignment, artifact = mean_errors.unbind()
    total = text + model.config.heatmap.weight * (artifact + misalignment)
    return Losses(total, text, artifact, misalignment)


def text_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy of the learned tokens; 0 if there is none.

    Args:
        logits: (B, T, vocabulary).
        labels: (B, T), the input ids where a token is learned, -100 elsewhere.
    """
    # The state at each place predicts the next token, so logits and labels are one apart.
    return mean_cross_entropy(logits[:, :-1], labels[:, 1:])


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Averages over the targets that are not `IGNORED`; 0 if there is none.

    Args:
        logits: (B, K, classes).
        targets: (B, K).
    """
    flat = logits.flatten(0, 1).float()
    total = cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _predict_maps(
    model: ImageDoctorModel, outputs: Outputs, labels: Tensor, grid: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Decodes both maps of the first N sequences, whose labels are (N, T).

    Returns:
        Maps (2N, 16 rows, 16 columns) in [0, 1], and whether their tokens are there, (N, 2). The
        map of an absent token is decoded from the first state, so that shapes stay fixed.
    """
    count, (rows, columns), config = len(labels), grid, model.config
    tokens = (config.misalignment_token_id, config.artifact_token_id)
    position = predicting_positions(labels, tokens)
    index = position.clamp(min=0).unsqueeze(-1).expand(-1, -1, outputs.hidden.shape[-1])
    states = outputs.hidden[:count].gather(1, index).flatten(0, 1)
    visual = outputs.visual.view(len(outputs.hidden), rows * columns, -1)[:count]
    visual = visual.repeat_interleave(2, dim=0)
    logits = model.heatmap_logits(states, visual, (rows, columns))
    return torch.sigmoid(logits.float()), position >= 0
