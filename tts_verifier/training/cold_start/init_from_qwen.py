"""`tts-train init-from-qwen`: makes an ImageDoctor of a stock Qwen2.5-VL checkpoint.

ImageDoctor's own script adds neither tokens nor ids; both are put in by hand there. Here the two
heatmap tokens are added to the tokenizer, at its first free ids, which are those of the released
config for the tokenizer of Qwen2.5. Their rows of the embedding start as the mean of all other
tokens' rows: the padding that they lie in was never trained. The heatmap heads start from random
weights, as the initial weights of the official ones are not published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.loading.files import read_json, read_text
from tts_verifier.training.cold_start.network import (
    HEADS,
    TRAINED_SHARD_BYTES,
    copy_small_files,
)
from tts_verifier.training.verifier.token_rows import HEATMAP_TOKENS
from tts_verifier.verifiers.imagedoctor.checkpoint import weights
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import find_checkpoint
from tts_verifier.verifiers.imagedoctor.checkpoint.save import save_model
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer


def init_from_qwen(
    *,
    model: str,
    output: str,
    heatmap_weight: float = 1.0,
    heads: Mapping[str, Any] | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
) -> None:
    """Writes the folder of an ImageDoctor. The arguments are the keys of the config.

    Args:
        model: a stock Qwen2.5-VL checkpoint: a folder or a hub id.
        output: the folder to write; must be new or empty.
        heatmap_weight: weight of both map errors in training.
        heads: dimensions of the heatmap heads, as `heatmap_config` of a config.json has them;
            None = the official ones.
        dtype: of the written weights.
        seed: decides the heads' weights.

    Raises:
        InputError: an argument cannot be used.
        CheckpointError: the checkpoint is not a stock Qwen2.5-VL, or is damaged.
    """
    if dtype not in ("bfloat16", "float16", "float32"):
        raise InputError(
            f"dtype must be bfloat16, float16 or float32, got {dtype!r}.", argument="dtype"
        )
    source, folder = find_checkpoint(model), Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"output must be new or empty, and {folder} has files.", argument="output")
    # The small files come first: a fault in them shows before the weights are read.
    tokenizer_json, ids = add_heatmap_tokens(source)
    config = image_doctor_config(source, ids, heatmap_weight, heads)
    PromptTokenizer(tokenizer_json, config)
    Processor.from_folder(source, config)
    torch.manual_seed(seed)
    doctor = with_heads(source, config, getattr(torch, dtype), old_tokens=min(ids.values()))
    copy_small_files(source, folder)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    state_special_tokens(folder / "tokenizer_config.json", ids)
    save_model(doctor, folder, dtype=getattr(torch, dtype), shard_bytes=TRAINED_SHARD_BYTES)
    listed = ", ".join(f"{HEATMAP_TOKENS[key]} {i}" for key, i in ids.items())
    print(f"An ImageDoctor with {listed}: {folder}", flush=True)


def add_heatmap_tokens(source: Path) -> tuple[str, dict[str, int]]:
    """Adds both tokens to a tokenizer: its new tokenizer.json, and the ids by HEATMAP_TOKENS.

    Raises:
        CheckpointError: there is no fast tokenizer, or it has the tokens.
    """
    from tokenizers import AddedToken, Tokenizer

    path = source / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(read_text(source, path.name))
    except FileNotFoundError:
        raise CheckpointError(
            f"{source} has no tokenizer.json, the fast tokenizer's file."
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} must be a fast tokenizer's file: {error}.") from None
    if there := [t for t in HEATMAP_TOKENS.values() if tokenizer.token_to_id(t) is not None]:
        raise CheckpointError(
            f"{path} must be that of a stock Qwen2.5-VL, and has {' and '.join(there)}. The "
            "checkpoint is an ImageDoctor already: train it as it is."
        )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in HEATMAP_TOKENS.values()]
    )
    ids = {key: int(tokenizer.token_to_id(t) or 0) for key, t in HEATMAP_TOKENS.items()}
    return str(tokenizer.to_str(pretty=False)), ids


def image_doctor_config(
    source: Path, ids: Mapping[str, int], weight: float, heads: Mapping[str, Any] | None
) -> ImageDoctorConfig:
    """Returns the config of a stock checkpoint with both ids, the weight and the heads.

    Raises:
        CheckpointError: the file is missing, or a dimension does not fit.
    """
    try:
        raw = read_json(source, "config.json")
    except OSError as error:
        raise CheckpointError(f"{source / 'config.json'} cannot be read: {error}") from None
    if not str(raw.get("model_type")).startswith("qwen2_5_vl"):
        raise CheckpointError(
            f"{source / 'config.json'} must be that of a stock Qwen2.5-VL, with model_type "
            f"'qwen2_5_vl'; it is {str(raw)[:80]}."
        )
    # The released model's embedding is padded far beyond both ids; a small one may have to grow.
    for part in (raw, raw.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            part["vocab_size"] = max(part["vocab_size"], max(ids.values()) + 1)
    raw |= {
        **ids,
        "model_type": "ImageDoctor",
        "architectures": ["ImageDoctorForConditionalGeneration"],
        "heatmap_weight": weight,
    }
    if heads:
        raw["heatmap_config"] = dict(heads)
    return ImageDoctorConfig.from_dict(raw)


def with_heads(
    source: Path, config: ImageDoctorConfig, dtype: torch.dtype, *, old_tokens: int
) -> ImageDoctorModel:
    """Loads stock weights and attaches fresh heads.

    Args:
        source: the folder of the stock weights.
        config: of the result, whose embedding may have more rows.
        dtype: of the weights.
        old_tokens: number of tokens that the stock tokenizer has.

    Raises:
        CheckpointError: a tensor is missing, unexpected or mis-shaped.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        doctor = ImageDoctorModel(config)
    doctor.attach_heads()
    stored = weights.read_headers(weights.weight_files(source))
    state = {n: t for n, t in doctor.state_dict().items() if not n.startswith(HEADS)}
    grown = {weights.EMBEDDING} | (set() if config.tied else {weights.OUTPUT_MATRIX})
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in grown & set(stored):
        # More rows than stored are added below; fewer would be a fault.
        rows = min(expected[name][0], stored[name].shape[0])
        expected[name] = (rows, *expected[name][1:])
    weights.check_shapes(expected, stored, tied=config.tied)
    cpu = torch.device("cpu")
    for tensors in weights.read_tensors(stored, lambda name: cpu, dtype):
        for name in grown & set(tensors):
            rows = int(config.text["vocab_size"])
            tensors[name] = with_mean_rows(tensors[name], rows, config, old_tokens)
        doctor.load_state_dict(tensors, strict=False, assign=True)
    doctor.tie()
    return doctor


def with_mean_rows(matrix: Tensor, rows: int, config: ImageDoctorConfig, old_tokens: int) -> Tensor:
    """Returns a matrix of so many rows, in which both heatmap tokens have the mean row.

    Rows that are added besides have it too. The mean is that of the old tokens' rows.
    """
    mean = matrix[:old_tokens].float().mean(0).to(matrix.dtype)
    grown = torch.cat([matrix, mean.expand(max(rows - len(matrix), 0), -1)]).clone()
    grown[[config.misalignment_token_id, config.artifact_token_id]] = mean
    return grown


def state_special_tokens(path: Path, ids: Mapping[str, int]) -> None:
    """Adds the tokens to tokenizer_config.json, if there is one, for users of transformers."""
    if not path.exists():
        return
    raw = read_json(path.parent, path.name)
    if isinstance(raw.get("added_tokens_decoder"), dict):
        common = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        raw["added_tokens_decoder"] |= {
            str(i): {"content": HEATMAP_TOKENS[key], **common, "special": True}
            for key, i in ids.items()
        }
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
