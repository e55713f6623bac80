"""The cold start's loss: text cross-entropy plus weighted errors of both heatmaps.

total = CE(text) + weight * (MSE(artifact) + MSE(misalignment)), as in the official forward
with labels (modify/transformers/modeling_qwen2_5_vl.py). That one assumes a single row with
one token of each kind; here rows are batched and a map without truth is left out.
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
    """Scalars; `total` = `text` + weight * (`artifact` + `misalignment`)."""

    total: Tensor
    text: Tensor
    artifact: Tensor
    misalignment: Tensor


def loss(
    model: ImageDoctorModel,
    outputs: Outputs,
    labels: Tensor,
    targets: Tensor,
    *,
    grid: Sequence[int],
) -> Losses:
    """Computes the loss of a batch whose images share one grid; no host synchronisation.

    Args:
        model: gives the heads and the weight of the maps.
        outputs: of its forward pass.
        labels: (B, T), input ids where the reply is learned, -100 elsewhere.
        targets: (N, 2, 16 rows, 16 columns) in [0, 1], misalignment then artifact, of the
            first N of the B rows. A map that holds a NaN, or whose token is not among the
            labels, does not count.
        grid: (rows, columns) of merged cells.
    """
    logits = outputs.logits[:, :-1].flatten(0, 1).float()
    text = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)
    config = model.config
    tokens = (config.misalignment_token_id, config.artifact_token_id)
    count, (rows, columns) = len(targets), grid
    where = predicting_positions(labels[:count], tokens)
    at = where.clamp(min=0).unsqueeze(-1).expand(-1, -1, outputs.hidden.shape[-1])
    states = outputs.hidden[:count].gather(1, at).flatten(0, 1)
    visual = outputs.visual.view(len(labels), rows * columns, -1)[:count]
    visual = visual.repeat_interleave(2, dim=0)
    maps = torch.sigmoid(model.heatmap_logits(states, visual, (rows, columns)).float())
    errors = (maps.view_as(targets) - targets.nan_to_num()).square().mean((2, 3))
    known = (where >= 0) & ~targets.isnan().any(3).any(2)
    each = torch.where(known, errors, 0.0).sum(0) / known.sum(0).clamp(min=1)
    misalignment, artifact = each.unbind()
    total = text + config.heatmap.weight * (artifact + misalignment)
    return Losses(total, text, artifact, misalignment)
