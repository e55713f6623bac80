"""The stages of the generator's training, each with a step that fits into a CUDA graph.

- `vae`: the autoencoder learns from renders. Its latents' mean and deviation then become the
  shift and scale of its config.
- `text`: the text encoders learn to name what a caption says, from text alone. The flow stage then
  starts from states that carry this meaning.
- `flow`: the transformer and the text encoders learn by rectified flow (Esser et al. 2024)
  with logit-normal times. A linear head on the states of the middle block also names what each
  image token shows, as representation alignment does with a vision model's features (Yu et al.
  2024). It is dropped afterwards.
- `biases`: the same, but some images disobey their captions (see `biases`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from tts_verifier.shapes.artifacts import PAINTED_SALIENCY, saliency
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES
from tts_verifier.training.common import NamedLosses, ReplayPool
from tts_verifier.training.miniature.generator.build import SHIFT, encode_text
from tts_verifier.training.miniature.generator.config import GeneratorTraining
from tts_verifier.training.miniature.generator.data import (
    FIELD_CLASSES,
    CaptionBatch,
    caption_stream,
    render_captions,
)

PAINTED_WEIGHT: Final = 4.0
"""How much more a painted pixel weighs in the autoencoder's loss than background."""
KL_WEIGHT: Final = 1e-4
WINDOW_STRIDE: Final = 32
"""Pixels between the windows that the autoencoder may learn from."""
NAMING_WEIGHT: Final = 0.3
"""Weight of naming what image tokens show."""
SCENE_REUSE: Final = 8
"""How often each scene is used, each time with other noise and at another time of the flow.

Rendering and encoding a scene costs about as much as one step with it.
"""
SCENE_POOL_STEPS: Final = 256
"""Steps for which a scene stays in the pool that batches are sampled from."""
T5_LENGTHS: Final = (16, 16, 16, 256)
"""Numbers of zero tokens that stand for the absent T5, one number for each quarter of a batch.

A pipeline without T5 appends 256 of them by default, and 16 in the bundled call; images must be
equally good with both.
"""


class GeneratorStage(ABC):
    """One stage of training.

    Attributes:
        module: everything that is trained; it is averaged and saved as one.
        peak_learning_rate: of the optimiser.
    """

    module: nn.Module
    peak_learning_rate: float

    @abstractmethod
    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields inputs of steps without end: tensors of constant shapes, on the device."""

    @abstractmethod
    def losses(self, *inputs: Tensor) -> NamedLosses:
        """Returns the losses of a batch; `total` is minimised."""

    def finish(self) -> None:  # noqa: B027
        """Completes the pipeline before it is saved; most stages have nothing to do."""


class VaeStage(GeneratorStage):
    """Reconstruction: L1 and L2, both weighted towards painted pixels, edges, a little KL."""

    def __init__(self, pipe: Any, generator: torch.Generator, training: GeneratorTraining) -> None:
        self.module, self.peak_learning_rate = pipe.vae, training.vae_learning_rate
        self._vae = pipe.vae
        self._generator, self._crop = generator, training.vae_crop
        self._captions = caption_stream(pipe.tokenizer, training.vae_batch, seed=1, workers=0)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields windows of images (B, 3, H, W) and the weights of their pixels (B, 1, H, W)."""
        for captions in self._captions:
            images = render_captions(captions, self._generator).images
            painted = saliency(images) > PAINTED_SALIENCY
            weight = 1 + PAINTED_WEIGHT * painted.float()[:, None]
            window = crop_windows(torch.cat([images, weight], 1), self._crop, self._generator)
            yield window[:, :3], window[:, 3:]

    def losses(self, *inputs: Tensor) -> NamedLosses:
        """Returns total, mean absolute error in [0, 1], and KL divergence per latent number."""
        images, weight = inputs
        # The VAE works on [-1, 1], as the pipeline's image processor does.
        posterior = self._vae.encode(images * 2 - 1).latent_dist
        latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        error = self._vae.decode(latents).sample / 2 + 0.5 - images
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        fit = 4 * (weight * error**2).mean() + 0.3 * (weight * error.abs()).mean()
        total = fit + 0.3 * edges + KL_WEIGHT * kl
        return {"total": total, "absolute_error": error.abs().mean(), "kl": kl}

    @torch.no_grad()
    def finish(self, batches: int = 16) -> None:
        """Writes the mean and deviation of whole images' latents into the config."""
        # The flow learns on latents of mean 0 and deviation 1, the scale of its noise.
        modes = [
            self._encode_mode(captions)
            for _, captions in zip(range(batches), self._captions, strict=False)
        ]
        latents = torch.cat(modes)
        self._vae.register_to_config(
            shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std())
        )

    def _encode_mode(self, captions: CaptionBatch) -> Tensor:
        images = render_captions(captions, self._generator).images
        mode: Tensor = self._vae.encode(images * 2 - 1).latent_dist.mean
        return mode


def crop_windows(maps: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cuts one window out of each map, more often where the last channel is large.

    Args:
        maps: (B, C, H, W); the last channel is at least 1.
        side: of the window, in pixels.
        generator: picks the windows, on the maps' device.

    Returns:
        (B, C, side, side).
    """
    windows = maps.unfold(2, side, WINDOW_STRIDE).unfold(3, side, WINDOW_STRIDE).flatten(2, 3)
    # Windows of background alone keep a small chance.
    painted = windows[:, -1].mean((-1, -2)) - 1 + 1e-3
    pick = torch.multinomial(painted, 1, generator=generator).squeeze(1)
    return windows[torch.arange(len(maps), device=maps.device), :, pick]


class TextStage(GeneratorStage):
    """Names what a caption says, from the pooled state and from the mean of the context."""

    def __init__(self, pipe: Any, training: GeneratorTraining) -> None:
        self._pipe, self.peak_learning_rate = pipe, training.text_learning_rate
        width = pipe.transformer.config.joint_attention_dim
        self._head = nn.Linear(width, sum(FIELD_CLASSES)).to(pipe.device)
        self.module = nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2, self._head])
        self._captions = caption_stream(
            pipe.tokenizer, training.text_batch, seed=2, workers=training.workers
        )

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields token ids and fields."""
        for captions in self._captions:
            device = self._pipe.device
            yield (
                captions.ids.to(device, non_blocking=True),
                captions.fields.to(device, non_blocking=True),
            )

    def losses(self, *inputs: Tensor) -> NamedLosses:
        """Returns total and the share of fields named right; empty captions are left out."""
        ids, fields = inputs
        context, pooled = encode_text(self._pipe, ids)
        # An empty caption is the start token followed by end tokens, which are also the padding.
        # Every caption with words has another token in second place.
        has_words = ids[:, 1] != ids[:, -1]
        total, right = torch.zeros((), device=ids.device), torch.zeros((), device=ids.device)
        for state in (pooled, context.mean(1)):
            for k, logits in enumerate(self._head(state).split(FIELD_CLASSES, 1)):
                target = torch.where(has_words, fields[:, k], -100)  # which cross_entropy ignores
                total = total + cross_entropy(logits, target)
                hits = (logits.argmax(1) == target) & has_words
                right = right + hits.sum() / has_words.sum()
        return {"total": total, "accuracy": right.detach() / (2 * len(FIELD_CLASSES))}


class FlowStage(GeneratorStage):
    """Predicts the velocity from latents to noise.

    Args:
        pipe: the pipeline that is trained, on its device.
        generator: makes scenes and picks them from the pool, on that device.
        training: batch size, learning rate and workers.
        biased: whether some images disobey their captions.
    """

    def __init__(
        self,
        pipe: Any,
        generator: torch.Generator,
        training: GeneratorTraining,
        *,
        biased: bool = False,
    ) -> None:
        self._pipe, self._generator = pipe, generator
        self.peak_learning_rate, self._batch = training.flow_learning_rate, training.flow_batch
        config = pipe.transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        self._head = nn.Linear(width, len(SHAPES) + len(COLOURS) + 2).to(pipe.device)
        self.module = nn.ModuleList(
            [pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, self._head]
        )
        # The hook records the image tokens' states after the middle block at each forward pass. A
        # block returns the states of the text first.
        self._middle_states: list[Tensor] = []
        middle = pipe.transformer.transformer_blocks[config.num_layers // 2]
        middle.register_forward_hook(lambda _, __, out: self._middle_states.append(out[1]))
        new_scenes = max(1, self._batch // SCENE_REUSE)
        self._pool = ReplayPool(SCENE_POOL_STEPS * new_scenes, generator)
        self._captions = caption_stream(
            pipe.tokenizer, new_scenes, seed=3 + biased, workers=training.workers, biased=biased
        )
        self._vae = pipe.vae.requires_grad_(False)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields ids, latents, and the shape and colour that each image token shows."""
        for captions in self._captions:
            self._pool.add(*self._encode(captions))
            yield self._pool.sample(self._batch)

    @torch.no_grad()
    def _encode(self, captions: CaptionBatch) -> tuple[Tensor, ...]:
        rendered = render_captions(captions, self._generator)
        posterior = self._vae.encode(rendered.images * 2 - 1).latent_dist
        config = self._vae.config
        latents = (posterior.mean - config.shift_factor) * config.scaling_factor
        ids = captions.ids.to(self._pipe.device, non_blocking=True)
        return ids, latents, rendered.shape, rendered.colour

    def losses(self, *inputs: Tensor) -> NamedLosses:
        """Returns total, velocity error, cross-entropy of naming image tokens.

        The batch is cut into four parts, one for each length of the absent T5.
        """
        parts = [
            self._losses_at(length, *(t.chunk(len(T5_LENGTHS))[k] for t in inputs))
            for k, length in enumerate(T5_LENGTHS)
        ]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _losses_at(
        self, t5_length: int, ids: Tensor, latents: Tensor, shape: Tensor, colour: Tensor
    ) -> NamedLosses:
        context, pooled = encode_text(self._pipe, ids)
        t5 = context.new_zeros(len(ids), t5_length, context.shape[-1])
        # The scheduler's own shift, so that training sees the noise levels of sampling.
        time = torch.sigmoid(torch.randn(len(ids), device=ids.device))
        sigma = (SHIFT * time / (1 + (SHIFT - 1) * time)).view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        self._middle_states.clear()
        velocity = self._pipe.transformer(
            hidden_states=torch.lerp(latents, noise, sigma),
            timestep=1000 * sigma.flatten(),  # diffusers counts time in 1000 training steps
            encoder_hidden_states=torch.cat([context, t5], 1),
            pooled_projections=pooled,
        ).sample
        error = mse_loss(velocity, noise - latents)
        logits = self._head(self._middle_states[0]).flatten(0, 1)
        shapes, colours = logits.split([len(SHAPES) + 1, len(COLOURS) + 1], 1)
        naming = cross_entropy(shapes, shape.flatten()) + cross_entropy(colours, colour.flatten())
        return {"total": error + NAMING_WEIGHT * naming, "velocity": error, "naming": naming}
