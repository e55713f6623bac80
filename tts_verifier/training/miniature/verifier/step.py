"""One training step of the verifier: static shapes and no host synchronisation.

On a GPU the whole step (forward pass, backward pass and update) is captured in one CUDA graph and
replayed; on a CPU it runs as it is written. Logits are computed only for the tokens after the
image. Preprocessing (resizing, normalising, cutting into patches) is part of the step, so an image
is transferred to the GPU as 49 kB of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tts_verifier.shapes.vocabulary import COLOURS, SHAPES, SIZE
from tts_verifier.training.common import CapturedStep, NamedLosses, mixed_precision
from tts_verifier.training.miniature.verifier.data import (
    UNKNOWN_CELL,
    ColdStartRows,
    PerceptionRows,
    Rows,
    TextRows,
)
from tts_verifier.training.miniature.verifier.rows import CHECK_CLASSES, CHECKS
from tts_verifier.training.verifier.preprocess import DevicePreprocess, resize_matrix
from tts_verifier.training.verifier.sft_loss import (
    IGNORED,
    loss,
    mean_cross_entropy,
    text_loss,
)
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.heatmap_head import UPSCALE
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel, Outputs
from tts_verifier.verifiers.imagedoctor.model.mrope import rope_positions

BETAS: Final = (0.9, 0.98)
"""The betas of AdamW."""
WEIGHT_DECAY: Final = 0.02
"""Weight decay of matrices; vectors have none."""

ImageRows = PerceptionRows | ColdStartRows


class VerifierStep:
    """Holds the model and its optimiser, and takes steps.

    On a GPU every batch must have the same shapes. Not safe to share between threads.

    Args:
        model: trained in place.
        processor: of its checkpoint.
        rows: the kind of image rows in every step.
        heatmap_rows: rows of a batch that train the heatmaps; None = all.
        answer_weight: of the losses of answers without reasons, see `VerifierTraining`.
    """

    def __init__(
        self,
        model: ImageDoctorModel,
        processor: Processor,
        *,
        rows: type[PerceptionRows] | type[ColdStartRows] = ColdStartRows,
        heatmap_rows: int | None = None,
        answer_weight: float = 0.0,
    ) -> None:
        self.model, self._rows, self._heatmap_rows = model, rows, heatmap_rows
        self._answer_weight = answer_weight
        self._device = model.lm_head.weight.device
        self.preprocess = DevicePreprocess(processor, SIZE).to(self._device)
        side = self.preprocess.side
        self._grid = (side, side)
        # Averages a map of 128 x 128 down to the resolution of the heatmap heads.
        self.map_resize = resize_matrix(SIZE, UPSCALE * side, Image.Resampling.BOX).to(self._device)
        # A captured step must read the learning rate from the device, or it would replay the first.
        self._rate = torch.tensor(0.0, device=self._device)
        width = int(model.config.text["hidden_size"])
        self._probe = nn.Linear(width, len(COLOURS) + 1 + len(SHAPES) + 3, device=self._device)
        self._answer_probe = nn.Linear(width, CHECKS * CHECK_CLASSES, device=self._device)
        self._optimiser = torch.optim.AdamW(
            _parameter_groups(nn.ModuleList([model, self._probe, self._answer_probe])),
            lr=self._rate,
            betas=BETAS,
            fused=True,
            capturable=self._device.type == "cuda",
        )
        self._image_step = CapturedStep(self._step_on_images)
        self._mixed_step = CapturedStep(self._step_on_both)
        self._positions: dict[tuple[int, int], Tensor] = {}
        self._end: int | None = None

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        self._rate.fill_(rate)

    def __call__(self, images: Rows, texts: Rows | None = None) -> NamedLosses:
        """Takes one step.

        Args:
            images: rows with images, of the kind that this object was made for.
            texts: rows without images, at every step or at none.

        Returns:
            The losses of `image_losses`, with `text_rows` added to `total` if there are rows
            without images. They stay on the device, and the next step may overwrite them.
        """
        if texts is None:
            return self._image_step(*images)
        return self._mixed_step(*images, *texts)

    def _step_on_images(self, *columns: Tensor) -> NamedLosses:
        with mixed_precision(self._device):
            losses = self.image_losses(self._rows(*columns))
        return self._update(losses)

    def _step_on_both(self, *columns: Tensor) -> NamedLosses:
        text_columns = len(TextRows._fields)
        with mixed_precision(self._device):
            losses = self.image_losses(self._rows(*columns[:-text_columns]))
            text_rows = self._text_row_loss(TextRows(*columns[-text_columns:]))
        total = losses["total"] + text_rows
        return self._update({**losses, "total": total, "text_rows": text_rows})

    def _update(self, losses: NamedLosses) -> NamedLosses:
        self._optimiser.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self._optimiser.step()
        return {name: value.detach() for name, value in losses.items()}

    def image_losses(self, rows: ImageRows) -> NamedLosses:
        """Returns the losses of rows with images.

        Returns:
            `total` and `text`; of perception rows also `probe_labels` and `probe_places`, of
            cold-start rows also `artifact` and `misalignment`, and with an `answer_weight` also
            `answers` and `answer_probe`.
        """
        outputs, labels = self._forward(rows)
        if isinstance(rows, PerceptionRows):
            text = text_loss(outputs.logits, labels)
            named, placed = self._probe_losses(outputs.visual, rows.cells)
            total = text + named + placed
            return {"total": total, "text": text, "probe_labels": named, "probe_places": placed}
        targets = self._map_targets(rows)
        losses = loss(self.model, outputs, labels, targets, grid=self._grid)
        listed = {
            "total": losses.total,
            "text": losses.text,
            "artifact": losses.artifact,
            "misalignment": losses.misalignment,
        }
        if not self._answer_weight:
            return listed
        answers, probe = self._answer_losses(outputs, labels, rows.checks)
        total = losses.total + self._answer_weight * (answers + probe)
        return listed | {"total": total, "answers": answers, "answer_probe": probe}

    def _forward(self, rows: ImageRows) -> tuple[Outputs, Tensor]:
        """Runs the network; returns its outputs and the labels from the image's end on."""
        count = len(rows.ids)
        patches = self._grid[0] * self.preprocess.merge
        visual = self.model.visual_features(
            self.preprocess(rows.pixels), [(patches, patches)] * count
        )
        positions = self._rope_positions(rows.ids, self._grid[0] ** 2).expand(-1, count, -1)
        hidden = self.model.language(self._embed(rows.ids, visual), positions)
        start = self._image_end(rows.ids)
        # Nothing up to the image's end is learned, so no logits are needed there.
        hidden = hidden[:, start:]
        return Outputs(hidden, visual, self.model.lm_head(hidden)), rows.labels[:, start:]

    def _map_targets(self, rows: ColdStartRows) -> Tensor:
        """Resizes the maps of the first rows; an unknown map is NaN."""
        maps = rows.maps[: self._heatmap_rows].float() / 255
        known = rows.known[: self._heatmap_rows]
        resized = self.map_resize @ maps @ self.map_resize.T
        return resized.masked_fill(~known[..., None, None], torch.nan)

    def _probe_losses(self, visual: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the losses of a linear probe on the visual features: of labels and of places.

        The replies alone supervise an image with a few words, and teach a tower of random weights
        to see only slowly. The probe supervises every merged token. It is dropped after training.

        Args:
            visual: (B * merged tokens, width) features of the vision tower.
            cells: (B, merged tokens, 5), as `PerceptionRows.cells`.

        Returns:
            Cross-entropy of colour and shape, and mean absolute error of offset and radius.
        """
        colours, shapes = len(COLOURS) + 1, len(SHAPES)
        predicted = self._probe(visual).float().split([colours, shapes, 3], -1)
        colour, shape = cells[..., :2].long().flatten(0, 1).unbind(-1)
        shown = (colour >= 0).float()
        # Modulo the number of classes, EMPTY_CELL (-1) is the last one; unknown cells are ignored.
        colour_target = torch.where(colour == UNKNOWN_CELL, IGNORED, colour % colours)
        colour_loss = cross_entropy(predicted[0], colour_target, ignore_index=IGNORED)
        # Clamped to a valid class where nothing is shown; `shown` then removes the loss.
        shape_loss = cross_entropy(predicted[1], shape.clamp(min=0), reduction="none") * shown
        place_error = (predicted[2] - cells[..., 2:].flatten(0, 1)).abs().mean(-1) * shown
        count = shown.sum().clamp(min=1)
        return colour_loss + shape_loss.sum() / count, place_error.sum() / count

    def _answer_losses(
        self, outputs: Outputs, labels: Tensor, checks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the losses of the rows without reasons: of their answers, and of a probe.

        Reasons supervise every comparison of image and caption. An answer alone supervises their
        sum, and a small model does not find out by itself what it is the sum of. A linear probe on
        the state that predicts the first score is asked for the comparisons. It is dropped after
        training.

        Args:
            outputs: of the network, from the image's end on.
            labels: (B, T), of the same places.
            checks: (B, `CHECKS`), as `ColdStartRows.checks`.

        Returns:
            Cross-entropy of the answers' tokens, and of the checks; 0 without such rows.
        """
        alone = (checks != IGNORED).any(1)
        text = text_loss(outputs.logits, labels.masked_fill(~alone[:, None], IGNORED))
        # The first learned token is the first score's label, whose state predicts the score.
        first = (labels != IGNORED).int().argmax(1)[:, None, None]
        width = outputs.hidden.shape[-1]
        states = outputs.hidden.gather(1, first.expand(-1, -1, width)).squeeze(1)
        predicted = self._answer_probe(states).unflatten(-1, (CHECKS, CHECK_CLASSES))
        return text, mean_cross_entropy(predicted, checks)

    def _text_row_loss(self, rows: TextRows) -> Tensor:
        """Returns the cross-entropy of rows without images."""
        positions = self._rope_positions(rows.ids, 0).expand(-1, len(rows.ids), -1)
        embedded = self.model.model.embed_tokens(rows.ids)
        logits = self.model.lm_head(self.model.language(embedded, positions))
        return text_loss(logits, rows.labels)

    def _rope_positions(self, ids: Tensor, merged_tokens: int) -> Tensor:
        """Returns M-RoPE positions (3, 1, T), which all rows share: their images start together."""
        key = (ids.shape[1], merged_tokens)
        if key not in self._positions:
            # Computed on the host, once and during the warm-up: a capture must not synchronise.
            first = ids[:1].cpu()
            merge = self.preprocess.merge
            if merged_tokens:
                grids = [(self._grid[0] * merge, self._grid[1] * merge)]
                token = self.model.config.image_token_id
                positions, _ = rope_positions(first, grids, image_token=token, merge=merge)
            else:
                positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
            self._positions[key] = positions.to(self._device)
        return self._positions[key]

    def _embed(self, ids: Tensor, visual: Tensor) -> Tensor:
        """Embeds tokens, with the image's features in place of its tokens."""
        embedded = self.model.model.embed_tokens(ids)
        merged_tokens, end = self._grid[0] ** 2, self._image_end(ids)
        features = visual.view(len(ids), merged_tokens, -1).to(embedded.dtype)
        # Slices instead of the model's masked scatter, whose backward pass waits for the device.
        return torch.cat([embedded[:, : end - merged_tokens], features, embedded[:, end:]], 1)

    def _image_end(self, ids: Tensor) -> int:
        """Returns where the image's tokens end, which is the same in all rows of a run."""
        if self._end is None:
            image = ids[0] == self.model.config.image_token_id
            self._end = int(image.nonzero().max()) + 1
        return self._end


def _parameter_groups(model: nn.Module) -> Sequence[dict[str, object]]:
    """Splits trained parameters into matrices, which decay, and vectors, which do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
