"""Writes config.json and safetensors shards in the released layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.checkpoint.weights import (
    INDEX_FILE,
    OUTPUT_MATRIX,
    SINGLE_FILE,
    group_by_bytes,
)
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

SHARD_BYTES: Final = 12 * 2**20
"""The largest size of a shard, unless the caller gives another."""


def save_model(
    model: ImageDoctorModel,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and safetensors shards under the official names.

    The caller writes the tokenizer's and the processor's files.

    Args:
        model: any model; fused weights are written as the separate ones that they hold.
        folder: is made if it does not exist.
        dtype: the dtype to store in, None = as it is.
        shard_bytes: the largest size of a shard; a larger tensor gets a shard of its own.
    """
    folder = Path(folder)
    state = stored_state(model)
    write_config(folder, model.config, dtype)
    write_weights(folder, state, dtype=dtype, shard_bytes=shard_bytes)


def stored_state(model: ImageDoctorModel) -> dict[str, Tensor]:
    """Returns the tensors that a checkpoint stores: a tied output matrix is not repeated."""
    tied = model.config.tied
    return {n: t for n, t in model.state_dict().items() if not (tied and n == OUTPUT_MATRIX)}


def write_config(folder: Path, config: ImageDoctorConfig, dtype: torch.dtype | None) -> None:
    """Writes config.json as it was read, and adds the heatmap head and the weights' dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = config.to_dict()
    if dtype is not None:
        raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    text = json.dumps(raw, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def write_weights(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    value: Callable[[str], Tensor] | None = None,
) -> None:
    """Writes shards, and an index if there are several; deletes the folder's older ones.

    Args:
        folder: must exist.
        state: official name -> tensor.
        dtype: the dtype to store in, None = as it is.
        shard_bytes: the largest size of a shard; a larger tensor gets a shard of its own.
        value: official name -> numbers to write, if they are not in `state`, whose shapes then
            suffice. One shard is in memory at a time.
    """
    value = value or state.__getitem__
    shards = list(group_by_bytes(state, dtype, shard_bytes))
    total = 0
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file_name = SINGLE_FILE
        if len(shards) > 1:
            file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        # Copies, because fused weights share memory, which safetensors refuses.
        tensors = {name: value(name).detach().to("cpu", dtype, copy=True) for name in names}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, str(folder / file_name), metadata={"format": "pt"})
        total += sum(t.nbytes for t in tensors.values())
        file_of.update(dict.fromkeys(names, file_name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    # A folder that was saved before with other shards would hold two sets of weights.
    written = {*file_of.values(), INDEX_FILE} if len(shards) > 1 else {*file_of.values()}
    for path in (*folder.glob("model*.safetensors"), folder / INDEX_FILE):
        if path.name not in written:
            path.unlink(missing_ok=True)
