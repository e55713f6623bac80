"""Writes a random-weight ImageDoctor in the released layout, to test loading and speed.

    python examples/make_checkpoint.py FOLDER            # tiny: 0.3 MB, a second
    python examples/make_checkpoint.py FOLDER --size 3b  # the real dimensions: 7.6 GB in bf16
    python examples/make_checkpoint.py FOLDER --size my.json  # keys of config.json over tiny's

The weights are random, so the scores mean nothing. The tokenizer has a token for each byte and
the special tokens, and no others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from tts_verifier.verifiers.imagedoctor.checkpoint.save import (
    stored_state,
    write_config,
    write_weights,
)
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|misalignment|>",
    "<|artifact|>",
)
OFFICIAL_IDS = (151643, 151644, 151645, 151652, 151653, 151655, 151656, 151665, 151666)

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    },
    "heatmap_config": {
        "width": 32,
        "text_hidden": 48,
        "image_hidden": 40,
        "heads": 4,
        "mlp": 48,
        "stem": [32, 16],
        "stages": [24, 16, 12, 8],
    },
}


def config(size: str) -> dict[str, Any]:
    """Returns the content of a config.json in the released form.

    Args:
        size: "tiny", "3b", or a JSON file with keys that replace tiny's.
    """
    own_keys = json.loads(Path(size).read_text(encoding="utf-8")) if size.endswith(".json") else {}
    # The tiny vocabulary has the 256 bytes first.
    ids = OFFICIAL_IDS if size == "3b" else tuple(range(256, 256 + len(SPECIAL)))
    id_of = dict(zip(SPECIAL, ids, strict=True))
    return {
        "architectures": ["ImageDoctorForConditionalGeneration"],
        "model_type": "ImageDoctor",
        "bos_token_id": id_of["<|endoftext|>"],
        "eos_token_id": id_of["<|im_end|>"],
        "image_token_id": id_of["<|image_pad|>"],
        "video_token_id": id_of["<|video_pad|>"],
        "vision_start_token_id": id_of["<|vision_start|>"],
        "vision_end_token_id": id_of["<|vision_end|>"],
        "misalignment_token_id": id_of["<|misalignment|>"],
        "artifact_token_id": id_of["<|artifact|>"],
        "heatmap_weight": 1,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16" if size == "3b" else "float32",
        "transformers_version": "4.49.0",
        "use_cache": None,
        **({} if size == "3b" else TINY),
        **own_keys,
    }


def tokenizer(raw: dict[str, Any]) -> str:
    """Returns a tokenizer.json: one token per byte, special tokens at the ids of the config."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    # The first three special tokens have neighbouring ids, the third of which ends a reply.
    first = raw["eos_token_id"] - 2
    ids = (first, first + 1, first + 2, raw["vision_start_token_id"], raw["vision_end_token_id"])
    ids += (raw["image_token_id"], raw["video_token_id"])
    ids += (raw["misalignment_token_id"], raw["artifact_token_id"])
    vocabulary.update(zip(SPECIAL, ids, strict=True))
    byte_tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_tokenizer.normalizer = normalizers.NFC()
    byte_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    byte_tokenizer.decoder = decoders.ByteLevel()
    byte_tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    return str(byte_tokenizer.to_str(pretty=False))


def random_value(name: str, shape: torch.Size, device: str = "cpu") -> torch.Tensor:
    """Returns a plausible random tensor: norms near one, matrices scaled to their inputs.

    Args:
        name: the tensor's official name, which is also the seed.
        shape: its shape.
        device: where the numbers are generated; a GPU is faster and generates other ones.
    """
    generator = torch.Generator(device).manual_seed(sum(name.encode()) + len(name))
    noise = torch.randn(shape, generator=generator, device=device)
    if name.endswith(".scale") or (len(shape) == 1 and name.endswith("weight")):
        return 1 + 0.05 * noise
    if name.endswith(".bias"):
        return 0.02 * noise
    if name.endswith("gaussian_matrix"):
        return noise
    return noise / max(1, shape[1:].numel()) ** 0.5


def make(
    folder: Path, *, size: str = "tiny", input_size: int | None = None, device: str = "cpu"
) -> None:
    """Writes the checkpoint.

    Args:
        folder: created if it does not exist.
        size: see `config`.
        input_size: side of the square that images are fitted into; None = 512 for "3b", else 112.
        device: see `random_value`.
    """
    raw = config(size)
    dtype = getattr(torch, raw["torch_dtype"])
    parsed = ImageDoctorConfig.from_dict(raw)
    with torch.device("meta"):
        model = ImageDoctorModel(parsed)
    state = stored_state(model)
    write_config(folder, parsed, dtype)
    write_weights(
        folder,
        state,
        dtype=dtype,
        shard_bytes=4 * 2**30,
        value=lambda name: random_value(name, state[name].shape, device),
    )
    (folder / "tokenizer.json").write_text(tokenizer(raw), encoding="utf-8")
    Processor(input_size=input_size or (512 if size == "3b" else 112)).save(folder)
    limits = {"repetition_penalty": 1.05, "max_new_tokens": 2048 if size == "3b" else 64}
    (folder / "generation_config.json").write_text(json.dumps(limits), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="tiny", help="tiny, 3b, or a JSON file")
    parser.add_argument("--input-size", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.size not in ("tiny", "3b") and not options.size.endswith(".json"):
        parser.error(f"--size must be tiny, 3b or a JSON file, got {options.size!r}")
    make(options.folder, size=options.size, input_size=options.input_size, device=options.device)
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    print(f"{options.folder}: {size / 1e6:,.1f} MB")


if __name__ == "__main__":
    main()
