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
    """The rows still being written, and what is known of them."""

    def __init__(self, model: ImageDoctorModel, ids: Tensor, real: Tensor, limits: Limits) -> None:
        config, rows = model.config, len(ids)
        self.limits = limits
        self.number = torch.arange(rows, device=ids.device)
        self.real = real
        self.used: Tensor | None = None
        if limits.penalty != 1.0:
            vocabulary = int(config.text["vocab_size"])
            self.used = torch.zeros(rows, vocabulary, dtype=torch.bool, device=ids.device)
            row, column = real.nonzero(as_tuple=True)
            self.used[row, ids[row, column]] = True
        kinds = (config.misalignment_token_id, config.artifact_token_id)
        self.kinds = torch.tensor(kinds, device=ids.device)
        self.eos = torch.tensor(limits.eos, device=ids.device)

    def choose(self, logits: Tensor) -> Tensor:
        """Returns the best token of each row, (rows,)."""
        logits = logits.float()
        if self.used is None:
            return logits.argmax(-1)
        penalty = self.limits.penalty
        lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
        token = torch.where(self.used, lowered, logits).argmax(-1)
        self.used[torch.arange(len(token), device=token.device), token] = True
        return token

    def keep(self, rows: Tensor) -> None:
        """Drops the other rows."""
        self.number, self.real = self.number[rows], self.real[rows]
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
    positions, shift = model.positions(ids, grids, real)
    cache = KeyValueCache(int(model.config.text["num_hidden_layers"]))
    padded = not bool(real.all())
    hidden = model.language(
        model.embed(ids, visual), positions, _causal(real) if padded else None, cache=cache
    )[:, -1]
    rows = _Rows(model, ids, real, limits)
    shift = shift + real.sum(1, keepdim=True)
    tokens, states, seen = _write(model, rows, hidden, shift, cache=cache, padded=padded)
    cells = [h * w // int(model.config.vision["spatial_merge_size"]) ** 2 for h, w in grids]
    replies = []
    for i, features in enumerate(torch.split(visual, cells)):
        reply, ended = _until(tokens[i].tolist(), limits.eos)
        found = (bool(seen[i, 0]), bool(seen[i, 1]))
        replies.append(Generated(reply, ended, states[i], found, features))
    return replies


def _write(
    model: ImageDoctorModel,
    rows: _Rows,
    hidden: Tensor,
    position: Tensor,
    *,
    cache: KeyValueCache,
    padded: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decodes; returns tokens (rows, steps), padded by -1, states (rows, 2, H), seen (rows, 2)."""
    count = len(hidden)
    tokens = torch.full((count, rows.limits.max_new_tokens), -1, device=hidden.device)
    states = hidden.new_zeros(count, 2, hidden.shape[-1])
    seen = torch.zeros(count, 2, dtype=torch.bool, device=hidden.device)
    live = torch.ones(count, dtype=torch.bool, device=hidden.device)
    for step in range(rows.limits.max_new_tokens):
        token = rows.choose(model.lm_head(hidden))
        tokens[rows.number, step] = torch.where(live, token, -1)
        hit = (token[:, None] == rows.kinds) & ~seen[rows.number] & live[:, None]
        states[rows.number] = torch.where(hit[..., None], hidden[:, None], states[rows.number])
        seen[rows.number] |= hit
        live = live & ~(token[:, None] == rows.eos).any(1)
        left = int(live.sum())
        if not left or step + 1 == rows.limits.max_new_tokens:
            break
        if left <= SHRINK * len(live):
            index = live.nonzero().squeeze(1)
            rows.keep(index)
            cache.keep(index)
            token, position, live = token[index], position[index], live[index]
        rows.real = torch.cat([rows.real, torch.ones_like(rows.real[:, :1])], dim=1)
        embedded = model.model.embed_tokens(token[:, None])
        mask = rows.real[:, None, None, :] if padded else None
        hidden = model.language(embedded, position.expand(3, -1, -1), mask, cache=cache)[:, -1]
        position = position + 1
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
