"""Makes checkpoints of the bundled verifier with random weights, reads them and writes them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tts_verifier.training.miniature.verifier import tokenizer
from tts_verifier.training.miniature.verifier.config import VerifierSizes
from tts_verifier.verifiers.imagedoctor.checkpoint.limits import read_limits
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    Checkpoint,
    load_model,
)
from tts_verifier.verifiers.imagedoctor.checkpoint.save import save_model
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

LIMITS: Final = {"max_new_tokens": 192, "repetition_penalty": 1.0, "do_sample": False}
"""The content of generation_config.json."""
SMALL_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
)
"""The files that a trained checkpoint shares with the checkpoint that it started from."""


def write_random_checkpoint(folder: Path, sizes: VerifierSizes, *, seed: int) -> None:
    """Writes a checkpoint of random weights; the same seed writes the same files."""
    tokenizer.save_tokenizer(folder)
    tokenizer_json = tokenizer.build_tokenizer_json()
    torch.manual_seed(seed)
    model = ImageDoctorModel(config_of(sizes, tokenizer_json))
    scale_by_width(model)
    order_numbers(model.model.embed_tokens.weight, tokenizer_json, seed)
    save_model(model, folder)
    Processor(input_size=sizes.input_size).save(folder)
    (folder / "generation_config.json").write_text(json.dumps(LIMITS), encoding="utf-8")


def config_of(sizes: VerifierSizes, tokenizer_json: str) -> ImageDoctorConfig:
    """Returns the config of a model of these sizes with this tokenizer."""
    ids = tokenizer.special_token_ids(tokenizer_json)
    return ImageDoctorConfig.from_dict(sizes.config_json(ids, max(ids.values()) + 1))


def weights_mib(sizes: VerifierSizes) -> float:
    """Returns the size of the weights in float16, in MiB."""
    with torch.device("meta"):
        model = ImageDoctorModel(config_of(sizes, tokenizer.build_tokenizer_json()))
    return sum(p.numel() for p in model.parameters()) * 2 / 2**20


@torch.no_grad()
def scale_by_width(model: ImageDoctorModel) -> None:
    """Initialises both towers' matrices again, with deviations that preserve the size of signals.

    transformers uses one deviation, 0.02, which suits wide models. In a narrow model signals then
    start so small that half of a short training only makes them grow. The biases of queries and
    keys are rotated with the position (M-RoPE): random biases make attention depend on a token's
    position from the start, and that is how image tokens learn their places.
    """
    depths = {"visual.": model.config.vision["depth"], "model.": len(model.model.layers)}
    for name, weight in model.named_parameters():
        depth = next((d for tower, d in depths.items() if name.startswith(tower)), 0)
        if name.startswith("model.") and name.endswith(("q_proj.bias", "k_proj.bias")):
            weight.normal_()
        if not depth or weight.dim() < 2:
            continue
        if "embed_tokens" in name:
            weight.normal_(0, 0.08)
            continue
        # As in GPT-2: a matrix that adds to the residual stream is smaller in deep towers.
        residual = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight"))
        deviation = weight[0].numel() ** -0.5
        weight.normal_(0, deviation / (2 * depth) ** 0.5 if residual else deviation)


@torch.no_grad()
def order_numbers(embedding: Tensor, tokenizer_json: str, seed: int) -> None:
    """Gives numbers embeddings that vary smoothly with their value (random Fourier features).

    Close numbers then start with close embeddings, which suits places measured in pixels.

    Args:
        embedding: (tokens, width), changed in place.
        tokenizer_json: content of the tokenizer.json, which names the tokens.
        seed: of the features.
    """
    generator = torch.Generator().manual_seed(seed)
    width = embedding.shape[1]
    # A cosine's deviation is 1 / sqrt(2): numbers get the deviation of the other embeddings.
    scale = float(embedding.std()) * math.sqrt(2)
    # Numbers less than about 48 apart have similar cosines.
    frequencies = torch.randn(width, generator=generator) / 48
    phases = torch.rand(width, generator=generator) * 2 * math.pi
    for token, index in json.loads(tokenizer_json)["model"]["vocab"].items():
        digits = token.lstrip("Ġ,")  # byte-level BPE spells a space as Ġ
        if digits in tokenizer.COORDINATES:
            # A little of its own tells "8", " 8" and ",8" apart, which share their features.
            distinct = 0.3 * embedding[index]
            embedding[index] = distinct + scale * (frequencies * int(digits) + phases).cos()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a folder for training: float32 weights, on the CPU, that take gradients."""
    config = ImageDoctorConfig.from_folder(folder)
    model = load_model(folder)
    for name, parameter in model.named_parameters():
        # SAM's prompt encoder has these two, but ImageDoctor never gives it points or masks.
        parameter.requires_grad_("point_embed" not in name and "mask_downscaling" not in name)
    prompt_tokenizer = PromptTokenizer.from_folder(folder, config)
    processor = Processor.from_folder(folder, config)
    return Checkpoint(model, prompt_tokenizer, processor, read_limits(folder, config))


def write_checkpoint(
    model: ImageDoctorModel, source: Path, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Writes a model, with the small files of the folder that it started from.

    Args:
        model: the model to write.
        source: the folder that training started from; may be `folder` itself.
        folder: the folder to write to.
        dtype: of the weights; None = as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in SMALL_FILES:
        if source != folder and (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())
    save_model(model, folder, dtype=dtype)
