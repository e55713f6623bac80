"""What the recipes for released models take: bytes of weights, arithmetic of a picture, seconds.

    python examples/benchmarks/recipe_costs.py

Nothing is loaded: the networks are built without memory, at the sizes of their config files,
and the operations of one evaluation are counted. Seconds are an estimate, arithmetic over
`--tflops` that a GPU reaches; by default 400, which is 40 % of an H100's peak in bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from random_models import clip, image_doctor_model, sd35, t5
from torch.utils.flop_counter import FlopCounterMode

from tts_verifier.memory import weight_bytes

RECIPES = Path(__file__).parents[2] / "recipes"
GIB = 2**30


@dataclass
class Model:
    """The networks of a pipeline, and how its denoiser and VAE are called for one picture.

    `guided`: rows of the denoiser that a picture takes at every step.
    """

    denoiser: Any
    texts: list[Any]
    vae: Any
    call: dict[str, Any]
    latents: tuple[int, ...]
    guided: int = 2


def blank(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


def kl(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
    )


def stable_diffusion_3(side: int) -> Model:
    pipe = sd35("meta")
    size = side // 8
    call = {
        "hidden_states": blank(1, 16, size, size),
        "encoder_hidden_states": blank(1, 77 + 256, 4096),
        "pooled_projections": blank(1, 2048),
        "timestep": blank(1),
    }
    texts = [pipe.text_encoder, pipe.text_encoder_2, t5(tiny=False)]
    return Model(pipe.transformer, texts, pipe.vae, call, (1, 16, size, size))


def flux(side: int) -> Model:
    size = side // 16
    call = {
        "hidden_states": blank(1, size * size, 64),
        "encoder_hidden_states": blank(1, 512, 4096),
        "pooled_projections": blank(1, 768),
        "timestep": blank(1),
        "guidance": blank(1),
        "img_ids": blank(size * size, 3),
        "txt_ids": blank(512, 3),
    }
    denoiser = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    texts = [clip(768, 12, 12, "quick_gelu"), t5(tiny=False)]
    return Model(denoiser, texts, kl(16), call, (1, 16, side // 8, side // 8), guided=1)


def sdxl(side: int) -> Model:
    size = side // 8
    call = {
        "sample": blank(1, 4, size, size),
        "timestep": blank(1),
        "encoder_hidden_states": blank(1, 77, 2048),
        "added_cond_kwargs": {"text_embeds": blank(1, 1280), "time_ids": blank(1, 6)},
    }
    denoiser = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    texts = [clip(768, 12, 12, "quick_gelu"), clip(1280, 32, 20, "gelu")]
    return Model(denoiser, texts, kl(4), call, (1, 4, size, size))


def sana(side: int) -> Model:
    size = side // 32
    call = {
        "hidden_states": blank(1, 32, size, size),
        "encoder_hidden_states": blank(1, 300, 2304),
        "timestep": blank(1),
    }
    vae = diffusers.AutoencoderDC(
        latent_channels=32,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3,) * 6,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    gemma = transformers.Gemma2Model(transformers.Gemma2Config())
    denoiser = diffusers.SanaTransformer2DModel()
    return Model(denoiser, [gemma], vae, call, (1, 32, size, size))


MODELS: dict[str, Callable[[int], Model]] = {
    "sd35": stable_diffusion_3,
    "flux": flux,
    "sdxl": sdxl,
    "sana": sana,
}


def counted(work: Callable[[], Any]) -> float:
    """Returns the floating-point operations of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def half(modules: list[Any]) -> float:
    """Returns the GiB of weights in 16 bits."""
    return sum(weight_bytes([m]) / 4 * 2 for m in modules) / GIB


def row(name: str, tflops: float) -> str:
    """Returns a recipe's line of the table."""
    told = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    drawn, count = told["generator"], told["strategy"]["n"]
    with torch.device("meta"):
        model = MODELS[name](drawn["height"])
        step = counted(lambda: model.denoiser(**model.call)) * model.guided
        decoding = counted(lambda: model.vae.decode(blank(*model.latents)))
    total = drawn["steps"] * step + decoding
    sizes = [half([model.denoiser]), half(model.texts), half([model.vae])]
    verifier = half([image_doctor_model("meta")])
    cells = [name, *(f"{size:.1f}" for size in sizes), f"{verifier:.1f}"]
    cells += [f"{sum(sizes) + verifier:.1f}", f"{total / 1e12:.0f}"]
    cells += [f"{total / 1e12 / tflops:.1f}", f"{count * total / 1e12 / tflops:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=400)
    options = parser.parse_args()
    print("| recipe | denoiser GiB | text | VAE | verifier | all | TFLOP a picture | s | s of n |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in MODELS:
        print(row(name, options.tflops), flush=True)


if __name__ == "__main__":
    main()
