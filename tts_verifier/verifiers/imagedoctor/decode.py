"""Many images and prompts to replies, greedily, in one left-padded batch.

Only the states that matter are kept: of each row the last-layer state, after the final norm,
that predicts the first token of each heatmap kind (the official script keeps every layer of
every token, one image at a time). Rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.cache import KeyValueCache
from tts_verifier.verifiers.imagedoctor.heads import UPSCALE
from tts_verifier.verifiers.imagedoctor.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.vision import Grid

SHRINK = 0.75
"""Ended rows are dropped when the batch would shrink at least to this share."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One image and its conversation; `patches` and `grid` as the processor gives them."""

    ids: Sequence[int]
    patches: NDArray[np.float32]
    grid: Grid


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop, and how. `penalty`: repetition penalty, 1 = none."""

    max_new_tokens: int
    eos: tuple[int, ...]
    penalty: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """One reply: `ids` without the end token; `ended` False when it was cut off.

    `states`: (2, H), misalignment and artifact; a row counts where `seen` is True.
    `visual`: (cells, H), the image's merged features.
    """

    ids: list[int]
    ended: bool
    states: Tensor
    seen: tuple[bool, bool]
    visual: Tensor


class _Rows:
    """The rows still being written: their past, and where each stands."""

    def __init__(self, model: ImageDoctorModel, ids: Tensor, real: Tensor, limits: Limits) -> None:
        self.model = model
        self.penalty = limits.penalty
        self.number = torch.arange(len(ids), device=ids.device)
        self.cache = KeyValueCache(int(model.config.text["num_hidden_layers"]))
        self.real = real
        self.padded = not bool(real.all())
        self.position = real.sum(1, keepdim=True)
        self.used: Tensor | None = None
        if limits.penalty != 1.0:
            shape = (len(ids), int(model.config.text["vocab_size"]))
            self.used = torch.zeros(shape, dtype=torch.bool, device=ids.device)
            row, column = real.nonzero(as_tuple=True)
            self.used[row, ids[row, column]] = True

    def read(self, ids: Tensor, visual: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Reads the prompts; returns the last state of each, (rows, H)."""
        positions, shift = self.model.positions(ids, grids, self.real)
        self.position = self.position + shift
        mask = _causal(self.real) if self.padded else None
        embedded = self.model.embed(ids, visual)
        return self.model.language(embedded, positions, mask, cache=self.cache)[:, -1]

    def append(self, token: Tensor) -> Tensor:
        """Reads one more token a row; returns its state, (rows, H)."""
        self.real = torch.cat([self.real, torch.ones_like(self.real[:, :1])], dim=1)
        mask = self.real[:, None, None, :] if self.padded else None
        embedded: Tensor = self.model.model.embed_tokens(token[:, None])
        position = self.position.expand(3, -1, -1)
        self.position = self.position + 1
        return self.model.language(embedded, position, mask, cache=self.cache)[:, -1]

    def choose(self, hidden: Tensor) -> Tensor:
        """Returns the best token of each row, (rows,)."""
        logits: Tensor = self.model.lm_head(hidden).float()
        if self.used is None:
            return logits.argmax(-1)
        lowered = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
        token = torch.where(self.used, lowered, logits).argmax(-1)
        self.used[torch.arange(len(token), device=token.device), token] = True
        return token

    def keep(self, rows: Tensor) -> None:
        """Drops the other rows."""
        self.number, self.real = self.number[rows], self.real[rows]
        self.position = self.position[rows]
        self.cache.keep(rows)
        if self.used is not None:
            self.used = self.used[rows]


@torch.inference_mode()
def generate(
    model: ImageDoctorModel, requests: Sequence[Request], limits: Limits
) -> list[Generated]:
    """Writes the replies of one batch; each equals what the row would get alone (float32)."""
    device = model.lm_head.weight.device
    ids, real = _left_padded([r.ids for r in requests], device)
    grids = [r.grid for r in requests]
    pixels = torch.from_numpy(np.concatenate([r.patches for r in requests])).to(device)
    visual = model.visual_features(pixels, grids)
    rows = _Rows(model, ids, real, limits)
    tokens, states, seen = _write(rows, rows.read(ids, visual, grids), limits)
    merge = int(model.config.vision["spatial_merge_size"])
    features = torch.split(visual, [h * w // merge**2 for h, w in grids])
    replies = []
    for row, state, kinds, cells in zip(
        tokens.tolist(), states, seen.tolist(), features, strict=True
    ):
        reply, ended = _until(row, limits.eos)
        replies.append(Generated(reply, ended, state, (kinds[0], kinds[1]), cells))
    return replies


def _write(rows: _Rows, hidden: Tensor, limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
    """Decodes; returns tokens (rows, steps), -1 after the end, states (rows, 2, H), seen."""
    count, device, config = len(hidden), hidden.device, rows.model.config
    kinds = torch.tensor([config.misalignment_token_id, config.artifact_token_id], device=device)
    eos = torch.tensor(limits.eos, device=device)
    tokens = torch.full((count, limits.max_new_tokens), -1, device=device)
    states = hidden.new_zeros(count, 2, hidden.shape[-1])
    seen = torch.zeros(count, 2, dtype=torch.bool, device=device)
    live = torch.ones(count, dtype=torch.bool, device=device)
    for step in range(limits.max_new_tokens):
        token = rows.choose(hidden)
        tokens[rows.number, step] = torch.where(live, token, -1)
        hit = (token[:, None] == kinds) & ~seen[rows.number] & live[:, None]
        states[rows.number] = torch.where(hit[..., None], hidden[:, None], states[rows.number])
        seen[rows.number] |= hit
        live = live & ~(token[:, None] == eos).any(1)
        left = int(live.sum())
        if not left or step + 1 == limits.max_new_tokens:
            break
        if left <= SHRINK * len(live):
            index = live.nonzero().squeeze(1)
            rows.keep(index)
            token, live = token[index], live[index]
        hidden = rows.append(token)
    return tokens, states, seen


def _left_padded(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids (B, T) and which of them are real (B, T), bool."""
    longest = max(map(len, ids))
    batch = torch.zeros(len(ids), longest, dtype=torch.long)
    real = torch.zeros(len(ids), longest, dtype=torch.bool)
    for i, row in enumerate(ids):
        batch[i, longest - len(row) :] = torch.tensor(row)
        real[i, longest - len(row) :] = True
    return batch.to(device), real.to(device)


def _causal(real: Tensor) -> Tensor:
    """Returns what may be attended to, (B, 1, T, T); padding sees itself, lest it be NaN."""
    length = real.shape[1]
    square = torch.ones(length, length, dtype=torch.bool, device=real.device)
    own = torch.eye(length, dtype=torch.bool, device=real.device)
    return ((square.tril() & real[:, None, :]) | own)[:, None]


def _until(tokens: list[int], eos: tuple[int, ...]) -> tuple[list[int], bool]:
    """Returns the tokens before the end token, and whether there was one."""
    for i, token in enumerate(tokens):
        if token in eos:
            return tokens[:i], True
    return tokens, False


@torch.inference_mode()
def heatmaps(
    model: ImageDoctorModel, states: Tensor, visual: Tensor, grid: Grid, *, chunk: int = 8
) -> NDArray[np.float32]:
    """Decodes N maps of one grid in chunks, which bounds memory.

    Args:
        model: gives the heads.
        states: (N, H).
        visual: (N, cells, H).
        grid: (rows, columns) of merged cells.
        chunk: maps at a time.

    Returns:
        float32 (N, 16 rows, 16 columns) in [0, 1].
    """
    maps = np.empty((len(states), UPSCALE * grid[0], UPSCALE * grid[1]), dtype=np.float32)
    for start in range(0, len(states), chunk):
        part = slice(start, start + chunk)
        logits = model.heatmap_logits(states[part], visual[part], grid)
        maps[part] = torch.sigmoid(logits.float()).cpu().numpy()
    return maps
