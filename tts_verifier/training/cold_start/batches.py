"""Blocks of rows as tensors: pictures, tokens, and where the reply is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tts_verifier.training.verifier.sft_loss import IGNORED
from tts_verifier.training.verifier.token_rows import TokenRow


class RowBlock(NamedTuple):
    """B rows that go through the network together."""

    ids: Tensor
    """int64 (B, T), token ids, padded on the right."""
    reply: Tensor
    """int64 (B, R), the places whose states are needed: from before the first learned token on."""
    labels: Tensor
    """int64 (B, R), at these places the ids of learned tokens, -100 elsewhere."""
    alone: Tensor
    """bool (B,), whether the reply is the answer without reasons."""
    pixels: Tensor
    """uint8 (B, 3, side, side), sRGB."""
    maps: Tensor
    """uint8 (N, 2, H, W), 255 = flawed, misalignment then artifact, of the first N rows."""
    known: Tensor
    """bool (N, 2), whether a map counts: its truth is known, and its token is in the reply."""

    @property
    def counts(self) -> Tensor:
        """Float (4,): learned tokens, those of answers alone, misalignment maps, artifact maps."""
        learned = (self.labels[:, 1:] != IGNORED).sum(1)
        maps = self.known.sum(0)
        return torch.stack([learned.sum(), (learned * self.alone).sum(), *maps]).float()


@dataclass(frozen=True, slots=True, eq=False)
class UnpaddedRow:
    """One row, before it becomes part of a block."""

    tokens: TokenRow
    """The conversation."""
    alone: bool
    """As in `RowBlock`."""
    pixels: Tensor
    """uint8 (3, side, side), sRGB."""
    maps: Tensor | None
    """uint8 (2, H, W), as in `RowBlock`; None = unknown."""


def collate(
    rows: Sequence[UnpaddedRow], heatmap_tokens: tuple[int, int], map_rows: int
) -> RowBlock:
    """Pads rows to one length and puts them together.

    Args:
        rows: whose pictures have one size, and whose maps have one too.
        heatmap_tokens: the ids of the misalignment and the artifact token.
        map_rows: N of `RowBlock`, at most.
    """
    longest = max(len(row.tokens.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row.tokens.ids)] = torch.tensor(row.tokens.ids)
        labels[i, : len(row.tokens.ids)] = torch.tensor(row.tokens.labels)
    first = rows[:map_rows]
    shape = next((row.maps.shape for row in first if row.maps is not None), (2, 1, 1))
    none = torch.zeros(shape, dtype=torch.uint8)
    maps = [none if row.maps is None else row.maps for row in first]
    known = torch.tensor([[row.maps is not None] * 2 for row in first], dtype=torch.bool)
    return make_block(
        ids,
        labels,
        torch.tensor([row.alone for row in rows]),
        torch.stack([row.pixels for row in rows]),
        torch.stack(maps) if maps else none[None][:0],
        known.view(-1, 2),
        heatmap_tokens,
    )


def make_block(
    ids: Tensor,
    labels: Tensor,
    alone: Tensor,
    pixels: Tensor,
    maps: Tensor,
    known: Tensor,
    heatmap_tokens: tuple[int, int],
) -> RowBlock:
    """Makes a block from labels at every place (B, T); the rest is as in `RowBlock`."""
    learned = labels != IGNORED
    length = labels.shape[1]
    # Of equal values argmax returns the first; a row without a learned token keeps its end.
    before = (learned.int().argmax(1) - 1).clamp(min=0)
    last = length - 1 - learned.flip(1).int().argmax(1)
    count = int((last - before).max()) + 1
    places = before[:, None] + torch.arange(count)
    reply = places.clamp(max=length - 1)
    reply_labels = labels.gather(1, reply).masked_fill(places > last[:, None], IGNORED)
    has_token = torch.stack([(reply_labels == t).any(1) for t in heatmap_tokens], 1)
    return RowBlock(ids, reply, reply_labels, alone, pixels, maps, known & has_token[: len(known)])
