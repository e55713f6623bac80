"""The update of a step: gradients of blocks of pictures, summed up, and the weights that follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tts_verifier.identity import seed_for
from tts_verifier.training.cold_start.stages import ADAM_BETAS, MOST_GRADIENT
from tts_verifier.training.common import CapturedStep, mixed_precision
from tts_verifier.training.common.step_guard import StepGuard
from tts_verifier.training.flow.formulas.losses import awm_loss, nft_loss, policy_loss
from tts_verifier.training.flow.formulas.sde import step_law
from tts_verifier.training.flow.model import FlowModel, TextStates, twin
from tts_verifier.training.flow.sampling import Drawn
from tts_verifier.training.flow.settings import FlowSettings

BLOCK_MEASURES = ("total", "kl", "clip_share", "distance")
"""What the gradients of a block are measured by, besides their norm."""


class TrainedWeights(nn.Module):
    """The trained weights and their copies, as one module that is saved with a run.

    Args:
        transformer: the policy; what takes gradients is trained.
        settings: say which copies there are.
    """

    def __init__(self, transformer: nn.Module, settings: FlowSettings) -> None:
        super().__init__()
        forward = settings.loss != "policy"
        pulled = settings.base_pull if forward else settings.kl
        copies = {
            "sampler": settings.draw_ahead,
            "reference": forward,
            "base": pulled > 0,
            "average": settings.average > 0,
        }
        self._policy = [p for p in transformer.parameters() if p.requires_grad]
        trained = [n for n, p in transformer.named_parameters() if p.requires_grad]
        # In a tuple, because a module that is an attribute would become a part.
        self._modules_of = ({"policy": transformer},)
        lists = {"policy": nn.ParameterList(self._policy)}
        for name, there in copies.items():
            if there:
                copied = twin(transformer)
                self._modules_of[0][name] = copied
                own = dict(copied.named_parameters())
                lists[name] = nn.ParameterList([own[n] for n in trained])
        self._lists = lists
        self.lists = nn.ModuleDict(lists)

    def module(self, name: str) -> nn.Module:
        """Returns the transformer with some weights; those of the policy if there is no copy."""
        return self._modules_of[0].get(name, self._modules_of[0]["policy"])

    @torch.no_grad()
    def follow(self, name: str, rate: float) -> None:
        """Moves a copy towards the policy by a share of the distance; 1 = all of it."""
        if name in self._lists:
            own = [p.detach() for p in self._lists[name]]
            torch._foreach_lerp_(own, [p.detach() for p in self._policy], rate)

    def trained(self) -> list[nn.Parameter]:
        """Returns the parameters of the policy that are trained."""
        return self._policy


class Updater:
    """Updates the policy by drawn pictures and their advantages.

    Args:
        model: the pipeline.
        weights: what is trained.
        settings: of the run.
        accelerator: of the processes.
        learning_rate: the peak; the loop sets that of each step.
        weight_decay: of AdamW, for matrices.
        autocast: whether products are in bfloat16 on a GPU.
    """

    def __init__(
        self,
        model: FlowModel,
        weights: TrainedWeights,
        settings: FlowSettings,
        accelerator: Accelerator,
        *,
        learning_rate: float,
        weight_decay: float,
        autocast: bool = True,
    ) -> None:
        self._model, self.weights, self._settings = model, weights, settings
        self._accelerator, self._autocast = accelerator, autocast
        self.block = settings.block_of(accelerator.num_processes)
        self._levels = model.levels(settings.steps_drawn)
        self._empty = model.encode([""])
        optimiser = torch.optim.AdamW(
            _decayed_groups(weights.trained(), weight_decay),
            lr=learning_rate,
            betas=ADAM_BETAS,
            fused=model.device.type == "cuda",
        )
        self.optimiser: Any = accelerator.prepare_optimizer(optimiser, device_placement=False)
        # Made once: a captured step adds to gradients at fixed addresses.
        for parameter in weights.trained():
            parameter.grad = torch.zeros_like(parameter)
        policy = settings.loss == "policy"
        self._add = CapturedStep(self._policy_block if policy else self._forward_block)
        self.guard = StepGuard()
        if model.device.type == "cuda":
            # Captured now, because no other thread may capture or free memory meanwhile. What
            # this adds to gradients is set to zero by the first update.
            self._add(*self._random_inputs(policy))

    def step(
        self, step: int, seed: int, drawn: Drawn, advantages: Tensor, rate: float
    ) -> dict[str, float]:
        """Updates the policy, and moves the copies that follow it.

        Args:
            step: its number.
            seed: decides which steps or times are trained, and the noise.
            drawn: R pictures of this process.
            advantages: (R, h, w) or (R, 1, 1), on the device.
            rate: the learning rate.

        Returns:
            Metrics, means over the updates.

        Raises:
            RunError: loss or gradient were not finite in too many steps in a row.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rows, updates = len(advantages), self._settings.updates
        found = []
        for k, part in enumerate(torch.arange(rows, device=advantages.device).chunk(updates)):
            inputs = self._inputs(drawn, advantages, part, seed_for(seed, "", k, "update"))
            found.append(self._update(step, inputs))
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}

    def _update(self, step: int, blocks: Iterable[tuple[Tensor, ...]]) -> dict[str, float]:
        gradients = [p.grad for p in self.weights.trained() if p.grad is not None]
        torch._foreach_zero_(gradients)
        sums = torch.zeros(len(BLOCK_MEASURES), device=self._model.device)
        count = 0
        # Made one at a time: every block has a copy of the texts of its pictures.
        for inputs in blocks:
            sums += self._add(*inputs)
            count += 1
        share = 1 / (count * self._accelerator.num_processes)
        torch._foreach_mul_(gradients, share)
        if self._accelerator.num_processes > 1:
            joined = torch.cat([g.flatten() for g in gradients])
            joined = self._accelerator.reduce(joined, "sum")
            parts = joined.split([g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        norm = torch.nn.utils.clip_grad_norm_(self.weights.trained(), MOST_GRADIENT)
        sums = self._accelerator.reduce(sums * share, "sum")
        values = dict(zip(BLOCK_MEASURES, sums.tolist(), strict=True)) | {"gradient": float(norm)}
        values["skipped"] = float(not self.guard.allows(step, values["total"], values["gradient"]))
        if not values["skipped"]:
            self.optimiser.step()
            self.weights.follow("reference", self._settings.reference_rate)
            self.weights.follow("average", 1 - self._settings.average)
        return values

    # -- what blocks are made of ---------------------------------------------------------------

    def _inputs(
        self, drawn: Drawn, advantages: Tensor, rows: Tensor, seed: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yields the inputs of each block of an update."""
        settings = self._settings
        blocks = rows.split(self.block)
        if settings.loss != "policy":
            generator = torch.Generator(self._model.device).manual_seed(seed)
            for part in blocks:
                for _ in range(settings.times):
                    yield self._forward_inputs(drawn, advantages, part, generator)
            return
        drawing = [i for i, level in enumerate(drawn.noise.tolist()) if level > 0]
        rng = np.random.default_rng(seed)
        if settings.trained_steps is not None:
            drawing = sorted(rng.choice(drawing, settings.trained_steps, replace=False).tolist())
        for part in blocks:
            for i in drawing:
                yield self._policy_inputs(drawn, advantages, part, i)

    def _random_inputs(self, policy: bool) -> tuple[Tensor, ...]:
        """Returns inputs of the right shapes."""
        device, (h, w) = self._model.device, self._model.grid
        latents = torch.randn(2, self.block, self._model.channels, h, w, device=device)
        size = (1, 1) if self._settings.advantage == "scalar" else (h, w)
        advantages = torch.zeros(self.block, *size, device=device)
        text = [part.expand(self.block, *part.shape[1:]).clone() for part in self._empty]
        if not policy:
            half = torch.full((self.block,), 0.5, device=device)
            return (*latents, half, advantages, *text)
        old = torch.zeros(self.block, h, w, device=device)
        levels = torch.tensor([0.9, 0.8, 0.9, 0.7], device=device)[:, None]
        return (*latents, old, advantages, levels.expand(4, self.block).clone(), *text)

    def _policy_inputs(
        self, drawn: Drawn, advantages: Tensor, rows: Tensor, i: int
    ) -> tuple[Tensor, ...]:
        levels = (self._levels[i], self._levels[i + 1], self._levels[1], drawn.noise[i])
        return (
            drawn.states[i, rows],
            drawn.states[i + 1, rows],
            drawn.log_probs[i, rows],
            advantages[rows],
            torch.stack([level.expand(len(rows)) for level in levels]),
            *(part[rows] for part in drawn.text),
        )

    def _forward_inputs(
        self, drawn: Drawn, advantages: Tensor, rows: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        images = drawn.latents[rows]
        device = images.device
        # Logit-normal times (Esser et al. 2024), shifted as those of sampling.
        times = torch.sigmoid(torch.randn(len(rows), generator=generator, device=device))
        noise = torch.randn(images.shape, generator=generator, device=device)
        # In [-1, 1], where both losses are convex.
        scaled = advantages[rows] / self._settings.most_advantage
        texts = (part[rows] for part in drawn.text)
        return (images, noise, self._model.shifted(times), scaled, *texts)

    # -- gradients of a block ------------------------------------------------------------------

    def _policy_block(
        self,
        latents: Tensor,
        following: Tensor,
        old: Tensor,
        advantages: Tensor,
        levels: Tensor,
        context: Tensor,
        pooled: Tensor,
    ) -> Tensor:
        settings, text = self._settings, TextStates(context, pooled)
        sigma, after, largest, noise = levels
        steps = {"sigma": sigma, "after": after, "largest": largest, "noise": noise}
        velocity = self._velocity("policy", latents, sigma, text)
        law = step_law(settings.sampler, latents, velocity, **steps)
        found = policy_loss(
            law.log_prob(following), old, advantages, ratio=settings.ratio, clip=settings.clip
        )
        loss, kl = found.loss.mean(), velocity.new_zeros(())
        if settings.kl:
            with torch.no_grad():
                base = self._velocity("base", latents, sigma, text)
                mean = step_law(settings.sampler, latents, base, **steps).mean
            kl = law.divergence(mean).mean()
            loss = loss + settings.kl * kl
        loss.backward()
        distance = (found.ratio - 1).abs().mean()
        return torch.stack([loss, kl, found.clipped.float().mean(), distance]).detach()

    def _forward_block(
        self,
        images: Tensor,
        noise: Tensor,
        sigma: Tensor,
        advantages: Tensor,
        context: Tensor,
        pooled: Tensor,
    ) -> Tensor:
        settings, text = self._settings, TextStates(context, pooled)
        latents = torch.lerp(images, noise, sigma.view(-1, 1, 1, 1))
        velocity = self._velocity("policy", latents, sigma, text)
        with torch.no_grad():
            reference = self._velocity("reference", latents, sigma, text)
        if settings.loss == "awm":
            losses = awm_loss(velocity, noise - images, reference, advantages, pull=settings.pull)
        else:
            losses = nft_loss(
                velocity, noise - images, reference, advantages, beta=settings.nft_beta
            )
        loss, away = losses.mean(), velocity.new_zeros(())
        if settings.base_pull:
            with torch.no_grad():
                base = self._velocity("base", latents, sigma, text)
            away = ((velocity - base) ** 2).mean()
            loss = loss + settings.base_pull * away
        loss.backward()
        distance = ((velocity - reference) ** 2).mean()
        return torch.stack([loss, away, torch.zeros_like(loss), distance]).detach()

    def _velocity(self, name: str, latents: Tensor, sigma: Tensor, text: TextStates) -> Tensor:
        with mixed_precision(self._model.device, enabled=self._autocast):
            return self._model.velocity(
                self.weights.module(name),
                latents,
                sigma,
                text,
                self._empty,
                self._settings.trained_guidance,
            )


def _decayed_groups(parameters: Sequence[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Returns the groups of an optimiser: matrices decay, and what else there is does not."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def metrics_of(values: Mapping[str, float], loss: str) -> dict[str, float]:
    """Names the metrics of an update as they are recorded.

    `distance` is that from the ratio 1, or the squared one from the reference.
    """
    left_out = {"clip_share"} if loss != "policy" else set()
    names = {"kl": "base_distance"} if loss != "policy" else {}
    return {names.get(n, n): v for n, v in values.items() if n not in left_out}
