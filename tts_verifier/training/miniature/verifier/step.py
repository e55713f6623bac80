"""One training step of the verifier: static shapes and no host synchronisation.

On a GPU the whole step, forward, backward and update, is captured in one CUDA graph and
replayed; on a CPU it runs as it is written. Logits are computed only after the image, and
preparing pixels (resizing, normalising, cutting into patches) is part of the step, so that a
picture travels as 49 kB of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tts_verifier.shapes.vocabulary import COLOURS, SHAPES, SIZE
from tts_verifier.training.common.cuda_graph import Captured
from tts_verifier.training.miniature.verifier.data import UNKNOWN, Batch
from tts_verifier.training.verifier.sft_loss import IGNORED, Losses, loss
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.heatmap_head import UPSCALE
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel, Outputs
from tts_verifier.verifiers.imagedoctor.model.mrope import rope_positions

BETAS: Final = (0.9, 0.98)
"""Of AdamW."""


class Eye(nn.Module):
    """uint8 pictures of 128 x 128 -> patches, as the checkpoint's processor makes them.

    Resizing is two matrix products with Pillow's own bicubic weights.
    """

    def __init__(self, processor: Processor) -> None:
        super().__init__()
        side = processor.input_size
        self.patch, self.merge = processor.patch_size, processor.merge_size
        self.frames = processor.temporal_patch_size
        self.cells = side // self.patch // self.merge
        self.resize = nn.Buffer(resizing(SIZE, side, Image.Resampling.BICUBIC))
        self.mean = nn.Buffer(torch.tensor(processor.image_mean).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(processor.image_std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 128, 128) uint8 -> (B * patches, values a patch)."""
        wide = self.resize @ pixels.float() @ self.resize.T
        values = (wide.clamp(0, 255).round() / 255 - self.mean) / self.std
        n, m, p = self.cells, self.merge, self.patch
        cut = values.view(len(pixels), 3, n, m, p, n, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        doubled = cut[:, :, :, :, :, :, None].expand(*cut.shape[:6], self.frames, p, p)
        return doubled.reshape(len(pixels) * (n * m) ** 2, -1)


def resizing(source: int, target: int, how: Image.Resampling) -> Tensor:
    """Returns Pillow's resampling along one axis as a matrix, (target, source)."""
    rows = Image.fromarray(np.eye(source, dtype=np.float32))
    return torch.from_numpy(np.array(rows.resize((source, target), how)))


class Step:
    """Holds model and optimiser, whose learning rate is a tensor set by `at`.

    Args:
        model: trained in place; on a GPU every batch must have the same shapes.
        processor: of its checkpoint.
        mapped: rows of a batch that teach the heatmaps; None = all.
    """

    def __init__(
        self, model: ImageDoctorModel, processor: Processor, *, mapped: int | None = None
    ) -> None:
        self.model, self.mapped = model, mapped
        self.device = model.lm_head.weight.device
        self.eye = Eye(processor).to(self.device)
        cells = self.eye.cells
        self.grid = (cells, cells)
        maps = resizing(SIZE, UPSCALE * cells, Image.Resampling.BOX)
        self.shrink = maps.to(self.device)
        self.rate = torch.tensor(0.0, device=self.device)
        width = int(model.config.text["hidden_size"])
        self.sight = nn.Linear(width, len(COLOURS) + 1 + len(SHAPES) + 3, device=self.device)
        self.gpu = self.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            _groups(nn.ModuleList([model, self.sight])),
            lr=self.rate,
            betas=BETAS,
            fused=True,
            capturable=self.gpu,
        )
        self._pictures_alone = Captured(self._alone)
        self._both = Captured(self._with_texts)
        self._positions: dict[tuple[int, int], Tensor] = {}
        self._end: int | None = None

    def at(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        self.rate.fill_(rate)

    def __call__(self, pictures: Batch, texts: Batch | None) -> Tensor:
        """Takes one step; returns the losses (total, text, artifact, misalignment, written).

        In look rows the third and fourth are those of `seen`. `written`: of the picture-less
        rows, given at every step or at none. The result stays on the device.
        """
        parts = pictures.tensors()
        if texts is None:
            return self._pictures_alone(*parts)
        return self._both(*parts, *texts.tensors())

    def _alone(self, *parts: Tensor) -> Tensor:
        with self._mixed():
            losses = self.losses(Batch.of(parts))
        return self._update(losses, torch.zeros_like(losses.text))

    def _with_texts(self, *parts: Tensor) -> Tensor:
        with self._mixed():
            losses, written = self.losses(Batch.of(parts[:-2])), self.written(Batch.of(parts[-2:]))
        return self._update(losses, written)

    def _mixed(self) -> torch.autocast:
        """bfloat16 products on a GPU; a CPU without them stays in float32."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.gpu, cache_enabled=False
        )

    def _update(self, losses: Losses, written: Tensor) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        total = losses.total + written
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        parts = (total, losses.text, losses.artifact, losses.misalignment, written)
        return torch.stack(parts).detach()

    def losses(self, batch: Batch) -> Losses:
        """Returns the cold start's loss of rows with pictures; without maps, text and sight."""
        if batch.pixels is None:
            raise ValueError("rows with pictures have pixels")
        model, count = self.model, len(batch.ids)
        patches = self.grid[0] * self.eye.merge
        visual = model.visual_features(self.eye(batch.pixels), [(patches, patches)] * count)
        positions = self._places(batch.ids, self.grid[0] ** 2).expand(-1, count, -1)
        hidden = model.language(self._embedded(batch.ids, visual), positions)
        start = self._image_end(batch.ids)
        hidden, labels = hidden[:, start:], batch.labels[:, start:]
        outputs = Outputs(hidden, visual, model.lm_head(hidden))
        if batch.maps is None or batch.known is None:
            text = _text_loss(outputs.logits, labels)
            kinds, places = self.seen(visual, batch.cells)
            return Losses(text + kinds + places, text, kinds, places)
        maps = self.shrink @ (batch.maps[: self.mapped].float() / 255) @ self.shrink.T
        known = batch.known[: self.mapped]
        targets = maps.masked_fill(~known[..., None, None], torch.nan)
        return loss(model, outputs, labels, targets, grid=self.grid)

    def seen(self, visual: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns how badly visual features tell what their cell shows: kinds and places.

        A throw-away linear layer reads them. One label a picture and word would teach a tower
        from nothing to see, but slowly: this gives it one a cell.
        """
        if cells is None:
            raise ValueError("look rows have cells")
        colours, shapes = len(COLOURS) + 1, len(SHAPES)
        read = self.sight(visual).float().split([colours, shapes, 3], -1)
        colour, shape = cells[..., :2].long().flatten(0, 1).unbind(-1)
        there = (colour >= 0).float()
        nameable = torch.where(colour == UNKNOWN, IGNORED, colour % colours)
        kinds = cross_entropy(read[0], nameable, ignore_index=IGNORED)
        lost = cross_entropy(read[1], shape.clamp(min=0), reduction="none") * there
        off = (read[2] - cells[..., 2:].flatten(0, 1)).abs().mean(-1) * there
        count = there.sum().clamp(min=1)
        return kinds + lost.sum() / count, off.sum() / count

    def written(self, batch: Batch) -> Tensor:
        """Returns the cross-entropy of rows without pictures."""
        positions = self._places(batch.ids, 0).expand(-1, len(batch.ids), -1)
        embedded = self.model.model.embed_tokens(batch.ids)
        logits = self.model.lm_head(self.model.language(embedded, positions))
        return _text_loss(logits, batch.labels)

    def _places(self, ids: Tensor, cells: int) -> Tensor:
        """Returns M-RoPE positions (3, 1, T): the same for all rows, as images stand alike."""
        key = (ids.shape[1], cells)
        if key not in self._positions:
            first = ids[:1].cpu()
            merge = self.eye.merge
            if cells:
                grids = [(self.grid[0] * merge, self.grid[1] * merge)]
                token = self.model.config.image_token_id
                places, _ = rope_positions(first, grids, image_token=token, merge=merge)
            else:
                places = torch.arange(ids.shape[1]).expand(3, 1, -1)
            self._positions[key] = places.to(self.device)
        return self._positions[key]

    def _embedded(self, ids: Tensor, visual: Tensor) -> Tensor:
        """Puts image features in their place, by slices.

        The model's own way, a masked scatter, waits for the device on its way back.
        """
        embedded = self.model.model.embed_tokens(ids)
        cells, end = self.grid[0] ** 2, self._image_end(ids)
        features = visual.view(len(ids), cells, -1).to(embedded.dtype)
        return torch.cat([embedded[:, : end - cells], features, embedded[:, end:]], 1)

    def _image_end(self, ids: Tensor) -> int:
        """Returns where the image's tokens end, which is the same in all rows of a run."""
        if self._end is None:
            image = ids[0] == self.model.config.image_token_id
            self._end = int(image.nonzero().max()) + 1
        return self._end


def _text_loss(logits: Tensor, labels: Tensor) -> Tensor:
    flat = logits[:, :-1].flatten(0, 1).float()
    return cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=IGNORED)


def _groups(model: nn.Module) -> Sequence[dict[str, object]]:
    """Weight decay for matrices alone."""
    some = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in some if p.dim() > 1]
    rest = [p for p in some if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": 0.02},
        {"params": rest, "weight_decay": 0.0},
    ]
