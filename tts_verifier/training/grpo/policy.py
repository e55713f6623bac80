"""Log-probabilities of the replies of groups, each group as one row of the network.

All replies of a group follow the same picture and prompt. A row holds these once and then every
reply, under a mask by which a reply sees its prompt and itself alone; positions go on from the
prompt in every reply. With a prompt of 300 tokens and 8 replies of 100 this is 1,100 tokens instead
of 3,200, and the result is that of separate rows (there is a test).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tts_verifier.training.grpo.rollouts import Group
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.vision import Grid

PADDED_TO: Final = 32
"""Prompts and replies are padded to multiples of this, so few shapes occur."""
MOST_LOGITS: Final = 2**28
"""Logits that are kept at a time; more are computed in parts, and again in the backward pass."""


class GroupRows(NamedTuple):
    """B groups of G replies."""

    prompts: Tensor
    """int64 (B, P), padded on the right with each prompt's first token."""
    real: Tensor
    """bool (B, P), False at padding."""
    replies: Tensor
    """int64 (B, G, R), padded on the right with 0."""
    chosen: Tensor
    """bool (B, G, R), True where a reply has a token."""
    rollout: Tensor
    """float32 (B, G, R), log-probabilities as the rollouts saw them."""
    visual: Tensor
    """(B, merged tokens, H), features of the pictures; (B, 0, 0) if they are computed anew."""
    pixels: Tensor
    """(B * patches, values), the pictures; (0, 0) if their features are there."""


def pack(groups: Sequence[Group], *, rows: int, with_pixels: bool) -> GroupRows:
    """Puts groups together.

    Args:
        groups: at least one, with equally many replies.
        rows: B, at least as many; the last ones repeat the first group and have no tokens.
        with_pixels: whether features are computed anew, from pixels.
    """
    every = [*groups, *[groups[0]] * (rows - len(groups))]
    size = len(groups[0].replies)
    p = _padded(max(len(group.prompt.ids) for group in groups))
    r = _padded(max(len(reply.ids) for group in groups for reply in group.replies))
    prompts = torch.empty(rows, p, dtype=torch.long)
    real = torch.zeros(rows, p, dtype=torch.bool)
    replies = torch.zeros(rows, size, r, dtype=torch.long)
    chosen = torch.zeros(rows, size, r, dtype=torch.bool)
    rollout = torch.zeros(rows, size, r)
    for i, group in enumerate(every):
        length = len(group.prompt.ids)
        prompts[i, :length] = torch.tensor(group.prompt.ids)
        prompts[i, length:] = group.prompt.ids[0]
        real[i, :length] = True
        for k, reply in enumerate(group.replies if i < len(groups) else ()):
            replies[i, k, : len(reply.ids)] = torch.tensor(reply.ids)
            chosen[i, k, : len(reply.ids)] = True
            rollout[i, k, : len(reply.ids)] = torch.from_numpy(reply.log_probs)
    device = groups[0].visual.device
    if with_pixels:
        pixels = torch.cat([torch.from_numpy(group.prompt.patches) for group in every])
        visual = torch.empty(rows, 0, 0)
    else:
        pixels, visual = torch.empty(0, 0), torch.stack([group.visual for group in every])
    columns = (prompts, real, replies, chosen, rollout, visual, pixels)
    return GroupRows(*(column.to(device, non_blocking=True) for column in columns))


class Policy(nn.Module):
    """What is trained of a model: the language model, and the vision tower if asked for.

    The model's other parts are not its modules, so they are neither moved nor saved with it.

    Args:
        model: trained in place.
        grid: (rows, columns) of patches of every picture.
        temperature: that replies were drawn at.
        train_tower: whether pictures go through the vision tower here.
    """

    def __init__(
        self, model: ImageDoctorModel, *, grid: Grid, temperature: float, train_tower: bool = False
    ) -> None:
        super().__init__()
        self.language, self.lm_head = model.model, model.lm_head
        if train_tower:
            self.tower = model.visual
        self.train_tower, self._grid, self._temperature = train_tower, grid, temperature
        # In a tuple, because a module that is an attribute would become a part.
        self._whole = (model,)

    @property
    def model(self) -> ImageDoctorModel:
        """The whole model."""
        return self._whole[0]

    def state(self) -> dict[str, Tensor]:
        """Returns the trained weights under the names of a checkpoint."""
        names = {"language": "model", "tower": "visual", "lm_head": "lm_head"}
        state = {}
        for name, tensor in self.named_parameters():
            part, _, rest = name.partition(".")
            state[f"{names[part]}.{rest}"] = tensor.detach()
        return state

    def frozen_copy(self, device: torch.device) -> Self:
        """Returns a reference that gives equal results and takes less memory."""
        reference = copy.deepcopy(self).requires_grad_(False).eval()
        if device.type == "cuda":
            # Products round their weights to bfloat16 anyway. Norms and the embedding do not.
            tied = reference.language.embed_tokens.weight
            for module in (*reference.language.modules(), reference.lm_head):
                if isinstance(module, nn.Linear) and module.weight is not tied:
                    module.to(torch.bfloat16)
        return reference.to(device)

    def forward(self, rows: GroupRows) -> Tensor:
        """Returns the log-probabilities of the replies' tokens, float32 (B, G, R)."""
        model, (b, g, r) = self.model, rows.replies.shape
        prompt = rows.prompts.shape[1]
        ahead = torch.arange(g * r, device=rows.replies.device) % r
        length = rows.real.sum(1)
        positions, shift = model.positions(rows.prompts, [self._grid] * b, rows.real)
        following = (length + shift[:, 0])[:, None] + ahead
        positions = torch.cat([positions, following.expand(3, -1, -1)], 2)
        embedded = torch.cat(
            [
                model.embed(rows.prompts, self._visual(rows)),
                # A reply may have drawn an image token, which stands for no picture.
                model.model.embed_tokens(rows.replies.flatten(1)),
            ],
            1,
        )
        hidden = model.language(embedded, positions, group_mask(rows.real, g, r))
        # The state before each token predicts it; before the first is the prompt's last one.
        before = torch.arange(g * r, device=ahead.device) + prompt - 1
        before = torch.where(ahead == 0, (length - 1)[:, None], before)
        states = hidden.gather(1, before[..., None].expand(-1, -1, hidden.shape[-1]))
        tokens = rows.replies.flatten()
        found = chosen_log_probs(states.flatten(0, 1), self.lm_head, tokens, self._temperature)
        return found.view(b, g, r)

    def _visual(self, rows: GroupRows) -> Tensor:
        if not self.train_tower:
            return rows.visual.flatten(0, 1)
        return self.model.visual_features(rows.pixels, [self._grid] * len(rows.prompts))


def group_mask(real: Tensor, replies: int, length: int) -> Tensor:
    """Returns which tokens of a row see which: bool (B, 1, T, T).

    Args:
        real: (B, P), False at padding of a prompt.
        replies: G, that follow it.
        length: R, of each.
    """
    prompt = real.shape[1]
    place = torch.arange(prompt + replies * length, device=real.device)
    # 0 is the prompt, and the replies count from 1.
    part = torch.where(place < prompt, 0, 1 + (place - prompt) // length)
    sees = (place[:, None] >= place) & ((part[:, None] == part) | (part == 0))
    there = torch.cat([real, real.new_ones(len(real), replies * length)], 1)
    return (sees & there[:, None])[:, None]


def chosen_log_probs(states: Tensor, head: nn.Module, tokens: Tensor, temperature: float) -> Tensor:
    """Returns the log-probabilities (N,), float32, of tokens (N,) after states (N, H)."""
    vocabulary: int = head.weight.shape[0]  # type: ignore[index, assignment]
    rows = max(1, MOST_LOGITS // vocabulary)
    if len(states) <= rows:
        return _log_probs(states, head, tokens, temperature)
    parts = [
        checkpoint(_log_probs, part, head, chosen, temperature, use_reentrant=False)
        for part, chosen in zip(states.split(rows), tokens.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _log_probs(states: Tensor, head: nn.Module, tokens: Tensor, temperature: float) -> Tensor:
    logits = head(states).float()
    if temperature != 1:
        logits = logits / temperature
    return -cross_entropy(logits, tokens, reduction="none")


def _padded(length: int) -> int:
    return -(-length // PADDED_TO) * PADDED_TO
