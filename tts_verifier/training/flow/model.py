"""A flow-matching pipeline for training: text in, velocities and pictures out, and its copies.

A policy and its copies (the sampler's weights, the reference, the average) share what is not
trained. So with adapters a copy costs only the adapters.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.diffusers.loading import BUNDLED_CALL, as_pipeline
from tts_verifier.training.common.bounds import check_rank

SCHEDULER: Final = "FlowMatchEulerDiscreteScheduler"
PIPELINES: Final = ("StableDiffusion3Pipeline", "FluxPipeline")
"""Pipelines whose transformer predicts a velocity and whose call is known here."""
ADAPTED_LAYERS: Final = (
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_out.0",
    "attn.to_q",
    "attn.to_v",
)
"""The layers that the official trainer adapts."""


class TextStates(NamedTuple):
    """What the transformer reads of B prompts."""

    context: Tensor
    """(B, T, width)."""
    pooled: Tensor
    """(B, width)."""


class FlowModel:
    """A pipeline of Stable Diffusion 3 or FLUX, and how its parts are called.

    Not safe to share between threads.

    Args:
        name: a folder, a hub id or "shapes"; or a loaded pipeline on its device.
        device: of all parts.
        dtype: of what is not trained.
        size: (height, width) of pictures in pixels; None = the pipeline's own.
        max_sequence_length: of T5; None = the pipeline's own.
        embedded_guidance: of a transformer that reads a guidance, such as FLUX.1-dev.

    Raises:
        CheckpointError: it cannot be found, trusted or loaded.
        UnsupportedError: it is no flow-matching pipeline of a kind that is known here.
        InputError: the size does not fit the pipeline.
    """

    def __init__(
        self,
        name: Any,
        device: torch.device,
        *,
        dtype: str = "float32",
        size: tuple[int | None, int | None] = (None, None),
        max_sequence_length: int | None = None,
        embedded_guidance: float = 3.5,
    ) -> None:
        self.pipe = as_pipeline(name, dtype, str(device))
        check_flow(self.pipe)
        self.device = device
        # Its rounding would be seen in the pictures.
        self.pipe.vae.float()
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self._packs = type(self.pipe).__name__ == "FluxPipeline"
        self.grid = _latent_grid(self.pipe, size)
        self._embedded_guidance = embedded_guidance
        length = max_sequence_length
        if length is None and isinstance(name, str) and name == "shapes":
            length = int(BUNDLED_CALL["max_sequence_length"])
        self._encoding = {} if length is None else {"max_sequence_length": length}

    @property
    def transformer(self) -> nn.Module:
        """The network that is trained."""
        transformer: nn.Module = self.pipe.transformer
        return transformer

    @property
    def channels(self) -> int:
        """Channels of latents."""
        return int(self.pipe.transformer.config.in_channels) // (4 if self._packs else 1)

    def levels(self, steps: int) -> Tensor:
        """Returns the levels before each step and after the last one: float32 (steps + 1,)."""
        scheduler = copy.deepcopy(self.pipe.scheduler)
        extra = {"mu": self._shift()} if scheduler.config.use_dynamic_shifting else {}
        # As the pipelines' calls have it.
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist() if self._packs else None
        count = None if self._packs else steps
        scheduler.set_timesteps(count, sigmas=sigmas, device=self.device, **extra)
        levels: Tensor = scheduler.sigmas.float()
        return levels

    def shifted(self, times: Tensor) -> Tensor:
        """Returns the levels of times in (0, 1), by the shift of the pipeline's scheduler."""
        scheduler = self.pipe.scheduler
        if scheduler.config.use_dynamic_shifting:
            shifted: Tensor = scheduler.time_shift(self._shift(), 1.0, times)
            return shifted
        shift = float(scheduler.shift)
        return shift * times / (1 + (shift - 1) * times)

    def _shift(self) -> float:
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
            calculate_shift,
        )

        config = self.pipe.scheduler.config
        side = 2 if self._packs else self.pipe.transformer.config.patch_size
        places = self.grid[0] * self.grid[1] // side**2
        return float(
            calculate_shift(
                places,
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.16),
            )
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """Encodes prompts as the pipeline's call does."""
        given: dict[str, Any] = {"prompt": list(prompts), "prompt_2": None, "device": self.device}
        if self._packs:
            context, pooled, _ = self.pipe.encode_prompt(**given, **self._encoding)
            return TextStates(context, pooled)
        given |= {"prompt_3": None, "do_classifier_free_guidance": False}
        context, _, pooled, _ = self.pipe.encode_prompt(**given, **self._encoding)
        return TextStates(context, pooled)

    def velocity(
        self,
        transformer: nn.Module,
        latents: Tensor,
        sigma: Tensor,
        text: TextStates,
        empty: TextStates,
        guidance: float,
    ) -> Tensor:
        """Predicts the velocity from image to noise: float32 (B, C, h, w).

        Args:
            transformer: the pipeline's, or a copy.
            latents: float32 (B, C, h, w).
            sigma: (B,), the levels of noise.
            text: of B prompts.
            empty: of one empty prompt.
            guidance: 1 = without classifier-free guidance.
        """
        if guidance == 1:
            return self._predict(transformer, latents, sigma, text)
        rows = len(latents)
        both = TextStates(
            *(
                torch.cat([e.expand(rows, *e.shape[1:]), t])
                for e, t in zip(empty, text, strict=True)
            )
        )
        found = self._predict(transformer, torch.cat([latents] * 2), torch.cat([sigma] * 2), both)
        without, with_text = found.chunk(2)
        return without + guidance * (with_text - without)

    def _predict(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, text: TextStates
    ) -> Tensor:
        if self._packs:
            return self._predict_packed(transformer, latents, sigma, text)
        found = transformer(
            hidden_states=latents.to(text.context.dtype),
            timestep=sigma * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=text.context,
            pooled_projections=text.pooled,
            return_dict=False,
        )[0]
        velocity: Tensor = found.float()
        return velocity

    def _predict_packed(
        self, transformer: nn.Module, latents: Tensor, sigma: Tensor, text: TextStates
    ) -> Tensor:
        """Predicts with FLUX, whose image tokens are 2 x 2 places with all their channels."""
        (rows, channels, h, w), dtype = latents.shape, text.context.dtype
        packed = latents.view(rows, channels, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(h // 2, w // 2, 3, device=latents.device, dtype=dtype)
        places[..., 1] = torch.arange(h // 2, device=latents.device)[:, None]
        places[..., 2] = torch.arange(w // 2, device=latents.device)[None]
        guidance = None
        if self.pipe.transformer.config.guidance_embeds:
            guidance = sigma.new_full((rows,), self._embedded_guidance)
        found = transformer(
            hidden_states=packed.reshape(rows, h * w // 4, 4 * channels).to(dtype),
            timestep=sigma,
            guidance=guidance,
            encoder_hidden_states=text.context,
            pooled_projections=text.pooled,
            txt_ids=places.new_zeros(text.context.shape[1], 3),
            img_ids=places.flatten(0, 1),
            return_dict=False,
        )[0].float()
        places_of = found.view(rows, h // 2, w // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        velocity: Tensor = places_of.reshape(rows, channels, h, w)
        return velocity

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents into pictures: uint8 (B, H, W, 3)."""
        vae = self.pipe.vae
        # As the pipeline has it; `or` because a VAE may state None.
        scaled = latents / (vae.config.scaling_factor or 1.0) + (vae.config.shift_factor or 0.0)
        images = vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
        pixels: Tensor = (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()

    def add_adapters(self, rank: int, alpha: int | None, targets: Sequence[str] | None) -> None:
        """Adds adapters (LoRA) to the transformer, which alone are trained; they start as nothing.

        Raises:
            InputError: peft is not installed, no layer has one of the names, or the rank is above
                those of all layers.
        """
        if importlib.util.find_spec("peft") is None:
            raise InputError(
                "lora_rank needs peft, which is not installed. Install it: pip install "
                '"tts-verifier[train]". lora_rank: 0 trains the whole transformer.',
                argument="lora_rank",
            )
        from peft import LoraConfig

        layers = dict(self.transformer.named_modules())
        found = {t for t in targets or ADAPTED_LAYERS if any(n.endswith(t) for n in layers)}
        # The last block of a small model lacks some of the usual ones.
        if missing := set(targets or ()) - found:
            raise InputError(
                f"lora_targets must be ends of names of layers; {type(self.transformer).__name__} "
                f"has no layer {', '.join(sorted(missing))}.",
                argument="lora_targets",
            )
        check_rank(rank, [m for n, m in layers.items() if n.endswith(tuple(found))])
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            init_lora_weights="gaussian",
            target_modules=sorted(found),
        )
        try:
            self.pipe.transformer.add_adapter(config)
        # A whole block, or another layer that peft cannot adapt.
        except ValueError as error:
            raise InputError(
                f"lora_targets must be layers that peft can adapt, got {', '.join(sorted(found))}: "
                f"{' '.join(str(error).split()):.200}",
                argument="lora_targets",
            ) from error

    def recompute_in_backward(self) -> None:
        """Makes the transformer compute the activations of blocks again instead of keeping them."""
        self.pipe.transformer.enable_gradient_checkpointing(_checkpointed)

    def write(self, folder: Path, transformer: nn.Module, dtype: torch.dtype) -> None:
        """Writes adapters in the format of diffusers and peft, or the whole pipeline.

        Args:
            folder: receives `pytorch_lora_weights.safetensors` or the pipeline's parts.
            transformer: the weights to write.
            dtype: of trained weights.
        """
        # diffusers only logs an error if the folder is a file.
        folder.mkdir(parents=True, exist_ok=True)
        adapters: Any = getattr(transformer, "peft_config", None)
        if not adapters:
            written = copy.copy(self.pipe)
            written.transformer = copy.deepcopy(transformer).to(dtype)
            written.save_pretrained(folder)
            return
        from peft.utils import get_peft_model_state_dict

        state = {n: t.to(dtype) for n, t in get_peft_model_state_dict(transformer).items()}
        about = adapters["default"].to_dict()
        # A set, whose order differs from process to process.
        about["target_modules"] = sorted(about["target_modules"])
        self.pipe.save_lora_weights(
            folder,
            transformer_lora_layers=state,
            # Holds rank and scale, which the weights alone do not tell.
            transformer_lora_adapter_metadata=about,
        )


def check_flow(pipe: Any) -> None:
    """Checks that a pipeline's transformer predicts a velocity and its scheduler is flow matching.

    Raises:
        UnsupportedError: it does not, or the pipeline is of another kind.
    """
    kind, scheduler = type(pipe).__name__, type(getattr(pipe, "scheduler", None)).__name__
    if kind not in PIPELINES:
        raise UnsupportedError(
            "flow trains transformers that predict a velocity, those of "
            f"{', '.join(PIPELINES)}; got {kind}. Give the model another pipeline."
        )
    if scheduler != SCHEDULER or pipe.scheduler.config.invert_sigmas:
        found = f"{scheduler} with invert_sigmas" if scheduler == SCHEDULER else scheduler
        raise UnsupportedError(
            f"flow needs a scheduler for flow matching, {SCHEDULER}, got {found}. Load the "
            "pipeline with the scheduler that it was trained with."
        )
    channels = pipe.transformer.config.in_channels
    # None stands for as many.
    predicted = pipe.transformer.config.out_channels or channels
    prediction = pipe.scheduler.config.get("prediction_type", "velocity")
    if predicted != channels or prediction not in ("velocity", "v_prediction"):
        raise UnsupportedError(
            "flow trains transformers that predict a velocity with the channels of the latents; "
            f"this one has {channels} channels in, {predicted} out, and the scheduler's "
            f"prediction is {prediction!r}."
        )


def _checkpointed(block: nn.Module, *inputs: Any) -> Any:
    # Nothing here is random, and random states cannot be read while a graph is captured.
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def twin(module: nn.Module) -> nn.Module:
    """Returns a copy that takes no gradients and shares what is not trained."""
    shared = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, shared).requires_grad_(False).eval()


def _latent_grid(pipe: Any, size: tuple[int | None, int | None]) -> tuple[int, int]:
    """Returns (h, w) of the latents of pictures of a size in pixels; None = the pipeline's own."""
    config, cell = pipe.transformer.config, pipe.vae_scale_factor
    own = config.get("sample_size") or getattr(pipe, "default_sample_size", 64)
    token = cell * max(2, config.patch_size)
    # FLUX has no largest size.
    largest = token * config.get("pos_embed_max_size", 2**16 // token)
    grid = []
    for name, given in zip(("height", "width"), size, strict=True):
        pixels = own * cell if given is None else given
        if pixels % token or not token <= pixels <= largest:
            raise InputError(
                f"{name} must be a multiple of {token} up to {largest} pixels, one token for "
                f"{token} of them, got {pixels}.",
                argument=name,
            )
        grid.append(pixels // cell)
    return grid[0], grid[1]
