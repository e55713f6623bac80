"""The generator's stages, each as one step that a CUDA graph can hold.

- `vae`: the autoencoder, on renders; then its latents' mean and deviation become the shift
  and scale of its config.
- `text`: the text encoders learn to tell what a caption says, on text alone, so that the
  flow starts from states that mean something.
- `flow`: the transformer with the text encoders, by rectified flow (Esser et al. 2024) with
  logit-normal times. A linear head in mid-network also names what each image token shows, as
  representation alignment does with a vision model's features (Yu et al. 2024); it is
  dropped afterwards.
- `habits`: the same, with pictures some of which disobey their captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from tts_verifier.shapes.artifacts import saliency
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES
from tts_verifier.training.common.replay_pool import Pool
from tts_verifier.training.miniature.generator.build import SHIFT, read_text
from tts_verifier.training.miniature.generator.config import Training
from tts_verifier.training.miniature.generator.data import FIELDS, Asked, draw, stream

PAINTED: Final = 4.0
"""How much more a painted pixel weighs in the autoencoder's loss than background."""
KL: Final = 1e-4
STRIDE: Final = 32
"""Pixels between the windows that the autoencoder may be shown."""
ALIGNMENT: Final = 0.3
"""Weight of naming what image tokens show."""
REUSE: Final = 8
"""How often each scene is learnt from, with other noise at other times: drawing and encoding
it costs about as much as one such step."""
POOL: Final = 256
"""Steps for which a scene stays in the pool that batches are drawn from."""
NOTHING: Final = (16, 16, 16, 256)
"""Lengths of the absent T5's zeros, in turn: a pipeline without T5 appends 16 of them or, by
default, 256, and pictures must be equally good."""


class Stage(Protocol):
    """What the loop needs of a stage."""

    peak: float

    @property
    def module(self) -> nn.Module:
        """All that is trained; averaged and saved as one."""
        ...

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields the step's inputs, of constant shapes, on the device."""
        ...

    def loss(self, *inputs: Tensor) -> Tensor:
        """Returns the losses to print; the first is what is minimised."""
        ...


class Vae:
    """Reconstruction: L1 and L2, both weighted towards what is painted, edges, a little KL."""

    def __init__(self, pipe: Any, generator: torch.Generator, training: Training) -> None:
        self.module, self.peak = pipe.vae, training.vae_rate
        self._generator, self._crop = generator, training.vae_crop
        self._captions = stream(pipe.tokenizer, training.vae_batch, seed=1, workers=0)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields windows of pictures and how much their pixels weigh (B, 1, H, W)."""
        for asked in self._captions:
            images = draw(asked, self._generator).images
            weight = 1 + PAINTED * (saliency(images) > 0.2).float()[:, None]
            window = cut(torch.cat([images, weight], 1), self._crop, self._generator)
            yield window[:, :3], window[:, 3:]

    def loss(self, *inputs: Tensor) -> Tensor:
        """Returns total, mean absolute error in [0, 1], KL a dimension."""
        images, weight = inputs
        there = self.module.encode(images * 2 - 1).latent_dist
        latents = there.mean + there.std * torch.randn_like(there.mean)
        error = self.module.decode(latents).sample / 2 + 0.5 - images
        across = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        divergence = 0.5 * (there.mean**2 + there.var - 1 - there.logvar).mean()
        fit = 4 * (weight * error**2).mean() + 0.3 * (weight * error.abs()).mean()
        total = fit + 0.3 * across + KL * divergence
        return torch.stack([total, error.abs().mean(), divergence])

    @torch.no_grad()
    def finish(self, pipe: Any, count: int = 16) -> None:
        """Writes the mean and deviation of whole pictures' latents into the config."""
        modes = [
            pipe.vae.encode(draw(asked, self._generator).images * 2 - 1).latent_dist.mean
            for _, asked in zip(range(count), self._captions, strict=False)
        ]
        latents = torch.cat(modes)
        pipe.vae.register_to_config(
            shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std())
        )


def cut(maps: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cuts a window of `side` pixels from each of (B, C, H, W), oftener where the last channel,
    which is at least 1, is more than 1."""
    windows = maps.unfold(2, side, STRIDE).unfold(3, side, STRIDE).flatten(2, 3)
    painted = windows[:, -1].mean((-1, -2)) - 1 + 1e-3
    pick = torch.multinomial(painted, 1, generator=generator).squeeze(1)
    return windows[torch.arange(len(maps), device=maps.device), :, pick]


class Text:
    """Names what a caption says, from the pooled state and from the mean of the context."""

    def __init__(self, pipe: Any, training: Training) -> None:
        self._pipe, self.peak = pipe, training.text_rate
        width = pipe.transformer.config.joint_attention_dim
        self._head = nn.Linear(width, sum(FIELDS)).to(pipe.device)
        self.module = nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2, self._head])
        workers = training.workers
        self._captions = stream(pipe.tokenizer, training.text_batch, seed=2, workers=workers)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields ids and fields."""
        for ids, _, _, _, fields in self._captions:
            device = self._pipe.device
            yield ids.to(device, non_blocking=True), fields.to(device, non_blocking=True)

    def loss(self, *inputs: Tensor) -> Tensor:
        """Returns total and the share of fields named right; empty captions teach nothing."""
        ids, fields = inputs
        context, pooled = read_text(self._pipe, ids)
        said = ids[:, 1] != ids[:, -1]
        total, right = torch.zeros((), device=ids.device), torch.zeros((), device=ids.device)
        for state in (pooled, context.mean(1)):
            named = self._head(state).split(FIELDS, 1)
            for k, logits in enumerate(named):
                target = torch.where(said, fields[:, k], -100)
                total = total + cross_entropy(logits, target)
                right = right + ((logits.argmax(1) == target) & said).sum() / said.sum()
        return torch.stack([total, right.detach() / (2 * len(FIELDS))])


class Flow:
    """Predicts the velocity from latents to noise."""

    def __init__(
        self, pipe: Any, generator: torch.Generator, training: Training, *, habits: bool = False
    ) -> None:
        self._pipe, self._generator, self.peak = pipe, generator, training.flow_rate
        self._count = training.flow_batch
        config = pipe.transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        self._head = nn.Linear(width, len(SHAPES) + len(COLOURS) + 2).to(pipe.device)
        self.module = nn.ModuleList(
            [pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, self._head]
        )
        self._seen: list[Tensor] = []
        middle = pipe.transformer.transformer_blocks[config.num_layers // 2]
        middle.register_forward_hook(lambda _, __, out: self._seen.append(out[1]))
        fresh = max(1, self._count // REUSE)
        self._pool = Pool(POOL * fresh, generator)
        self._captions = stream(
            pipe.tokenizer, fresh, seed=3 + habits, workers=training.workers, habits=habits
        )
        self._vae = pipe.vae.requires_grad_(False)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields ids, latents, what image tokens show (shape, colour)."""
        for asked in self._captions:
            self._pool.add(*self._encoded(asked))
            yield self._pool.draw(self._count)

    @torch.no_grad()
    def _encoded(self, asked: Asked) -> tuple[Tensor, ...]:
        pictures = draw(asked, self._generator)
        there = self._vae.encode(pictures.images * 2 - 1).latent_dist
        config = self._vae.config
        latents = (there.mean - config.shift_factor) * config.scaling_factor
        ids = asked[0].to(self._pipe.device, non_blocking=True)
        return ids, latents, pictures.shape, pictures.colour

    def loss(self, *inputs: Tensor) -> Tensor:
        """Returns total, velocity error, cross-entropy of naming tokens.

        The batch is cut into four, so that each length of the absent T5 has its share.
        """
        parts = [
            self._part(length, *(t.chunk(len(NOTHING))[k] for t in inputs))
            for k, length in enumerate(NOTHING)
        ]
        return torch.stack(parts).mean(0)

    def _part(
        self, length: int, ids: Tensor, latents: Tensor, shape: Tensor, colour: Tensor
    ) -> Tensor:
        context, pooled = read_text(self._pipe, ids)
        empty = context.new_zeros(len(ids), length, context.shape[-1])
        time = torch.sigmoid(torch.randn(len(ids), device=ids.device))
        sigma = (SHIFT * time / (1 + (SHIFT - 1) * time)).view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        self._seen.clear()
        velocity = self._pipe.transformer(
            hidden_states=torch.lerp(latents, noise, sigma),
            timestep=1000 * sigma.flatten(),
            encoder_hidden_states=torch.cat([context, empty], 1),
            pooled_projections=pooled,
        ).sample
        moved = mse_loss(velocity, noise - latents)
        named = self._head(self._seen[0]).flatten(0, 1)
        shapes, colours = named.split([len(SHAPES) + 1, len(COLOURS) + 1], 1)
        naming = cross_entropy(shapes, shape.flatten()) + cross_entropy(colours, colour.flatten())
        return torch.stack([moved + ALIGNMENT * naming, moved, naming])
