"""Draws the pictures of a step: by the Euler steps of the flow, or by steps that draw noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tts_verifier.identity import seed_for
from tts_verifier.training.common import CapturedStep, mixed_precision
from tts_verifier.training.flow.formulas.sde import StepKind, step_law
from tts_verifier.training.flow.model import FlowModel, TextStates


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """R pictures, those of a caption one after another."""

    text: TextStates
    """Of the captions, on the device; a row for each picture."""
    images: NDArray[np.uint8]
    """(R, H, W, 3), on the host."""
    states: Tensor
    """float32 (S + 1, R, C, h, w), the latents before each step and at the end; of Euler steps
    alone only the end, (1, R, C, h, w)."""
    log_probs: Tensor
    """float32 (S, R, h, w), of what each step drew; (0, R, h, w) with Euler steps alone."""
    noise: Tensor
    """float32 (S,), how much each step drew; 0 = nothing."""

    @property
    def latents(self) -> Tensor:
        """The finished latents, (R, C, h, w)."""
        return self.states[-1]


class Sampler:
    """Draws pictures with one set of weights. Not safe to share between threads.

    On a GPU all steps and the decoding of a block are one CUDA graph, which sees in-place updates
    of the weights.

    Args:
        model: the pipeline.
        transformer: the weights to draw with.
        steps: S.
        guidance: of the steps.
        kind: of steps that draw; None = Euler steps, and only finished latents are kept.
        trained_guidance: of the log-probabilities.
        block: pictures at a time.
        autocast: whether products are in bfloat16 on a GPU.
    """

    def __init__(
        self,
        model: FlowModel,
        transformer: nn.Module,
        *,
        steps: int,
        guidance: float,
        kind: StepKind | None = None,
        trained_guidance: float | None = None,
        block: int,
        autocast: bool = True,
    ) -> None:
        self._model, self._transformer, self._kind = model, transformer, kind
        self._guidance, self._block, self._autocast = guidance, block, autocast
        self._trained = guidance if trained_guidance is None else trained_guidance
        self.levels = model.levels(steps)
        self._empty = model.encode([""])
        self._draw_block = CapturedStep(self._trajectory)

    @property
    def steps(self) -> int:
        """S."""
        return len(self.levels) - 1

    def draw(
        self, prompts: Sequence[str], each: int, seed: int, noise: Tensor | None = None
    ) -> Drawn:
        """Draws pictures.

        Args:
            prompts: captions.
            each: pictures of a caption.
            seed: decides them; a picture depends on it and on its place.
            noise: (S,), how much each step draws; None = nothing.
        """
        device, rows = self._model.device, len(prompts) * each
        text = TextStates(*(t.repeat_interleave(each, 0) for t in self._model.encode(prompts)))
        noise = torch.zeros(self.steps) if noise is None else noise
        noise = noise.to(device)
        parts = []
        for first in range(0, rows, self._block):
            # The last block is filled up, because a captured step has one shape.
            place = torch.arange(first, first + self._block, device=device).clamp(max=rows - 1)
            part = TextStates(*(t[place] for t in text))
            parts.append(self._draw_part(part, seed_for(seed, "", first, "block"), noise))
        states, log_probs, pixels = (
            torch.cat(p, dim)[:, :rows] if dim else torch.cat(p)[:rows]
            for p, dim in zip(zip(*parts, strict=True), (1, 1, 0), strict=True)
        )
        return Drawn(text, pixels.cpu().numpy(), states, log_probs, noise)

    def _draw_part(self, text: TextStates, seed: int, noise: Tensor) -> tuple[Tensor, ...]:
        model = self._model
        generator = torch.Generator(model.device).manual_seed(seed)
        shape = (self._block, model.channels, *model.grid)
        start = torch.randn(shape, generator=generator, device=model.device)
        # A step that draws nothing needs no noise.
        steps = 0 if self._kind is None else self.steps
        drawn = torch.randn((steps, *shape), generator=generator, device=model.device)
        found = self._draw_block(start, drawn, noise, *text)
        # The next replay overwrites them.
        return tuple(found[name].clone() for name in ("states", "log_probs", "pixels"))

    @torch.no_grad()
    def _trajectory(
        self, latents: Tensor, drawn: Tensor, noise: Tensor, context: Tensor, pooled: Tensor
    ) -> dict[str, Tensor]:
        text, rows = TextStates(context, pooled), len(latents)
        states, log_probs = [latents], [latents.new_empty(0, rows, *latents.shape[2:])]
        for i in range(self.steps):
            sigma, after = (self.levels[k].expand(rows) for k in (i, i + 1))
            velocity = self._velocity(latents, sigma, text, self._guidance)
            if self._kind is None:
                latents = latents + (after - sigma).view(-1, 1, 1, 1) * velocity
                continue
            steps = {"sigma": sigma, "after": after, "largest": self.levels[1].expand(rows)}
            steps["noise"] = noise[i].expand(rows)
            law = step_law(self._kind, latents, velocity, **steps)
            following = law.draw(drawn[i])
            if self._trained != self._guidance:
                velocity = self._velocity(latents, sigma, text, self._trained)
                law = step_law(self._kind, latents, velocity, **steps)
            log_probs.append(law.log_prob(following)[None])
            latents = following
            states.append(latents)
        kept = [latents] if self._kind is None else states
        pixels = self._model.decode(latents)
        return {"states": torch.stack(kept), "log_probs": torch.cat(log_probs), "pixels": pixels}

    def _velocity(
        self, latents: Tensor, sigma: Tensor, text: TextStates, guidance: float
    ) -> Tensor:
        with mixed_precision(self._model.device, enabled=self._autocast):
            return self._model.velocity(
                self._transformer, latents, sigma, text, self._empty, guidance
            )


def drawing_steps(steps: int, noise: float, window: int | None, rng: np.random.Generator) -> Tensor:
    """Returns how much each step draws: float32 (steps,).

    The last step never draws, since its noise would stay in the picture.

    Args:
        steps: of the sampler.
        noise: of the steps that draw.
        window: steps in a row that draw, at a random place; None = all but the last.
        rng: picks the place.
    """
    found = torch.zeros(steps)
    count = steps - 1 if window is None else window
    first = int(rng.integers(steps - count))
    found[first : first + count] = noise
    return found
