"""Reads weights from safetensors shards, under both generations of names, with exact checks.

Up to version 4.51 transformers names the parts `visual.*` and `model.*`, as the released weights
do; later versions name them `model.visual.*` and `model.language_model.*`. Nothing is skipped
silently: a missing, unexpected or mis-shaped tensor is an error that lists it. Pickles are not
read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tts_verifier.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
OUTPUT_MATRIX = "lm_head.weight"
"""May be the embedding itself ("tied"); then it is not stored."""
NEWER_PREFIXES = (("model.visual.", "visual."), ("model.language_model.", "model."))
"""(prefix of newer transformers, released prefix)."""
READ_BYTES = 2**28
"""The most bytes of tensors that are read at a time: loading needs so much spare memory."""
MAX_LISTED = 12
"""The most names of a kind that an error message shows."""


class StoredTensor(NamedTuple):
    """A tensor on disk."""

    path: Path
    """The file that holds it."""
    stored_name: str
    """Its name in the file, of either generation."""
    shape: tuple[int, ...]
    """Its shape, from the file's header."""


def official_name(name: str) -> str:
    """Returns the released name of a tensor of either generation."""
    for newer, released in NEWER_PREFIXES:
        if name.startswith(newer):
            return released + name.removeprefix(newer)
    return name


def weight_files(folder: Path) -> list[Path]:
    """Finds a folder's safetensors files, by its index if there is one.

    Raises:
        CheckpointError: there are no weights, only pickles, or the index names a missing file.
    """
    index = folder / INDEX_FILE
    if index.exists():
        return _indexed_files(index)
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise CheckpointError(
            f"Only safetensors are read, since a pickle can run code; {folder} has "
            f"{', '.join(pickles)}. Convert it to safetensors first."
        )
    raise CheckpointError(
        f"{folder} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there."
    )


def _indexed_files(index: Path) -> list[Path]:
    try:
        file_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(file_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} must be a safetensors index: {error!r}.") from None
    paths = [index.parent / name for name in names]
    if absent := [path.name for path in paths if not path.exists()]:
        raise CheckpointError(f"{index} names files that are missing: {', '.join(absent)}.")
    return paths


def read_headers(paths: list[Path]) -> dict[str, StoredTensor]:
    """Reads the headers of safetensors files: official name -> tensor on disk.

    Raises:
        CheckpointError: a file is damaged, or a tensor is there under both its names.
    """
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        try:
            with safe_open(str(path), framework="pt") as file:
                for stored_name in file.keys():  # noqa: SIM118  (not a mapping)
                    name = official_name(stored_name)
                    if name in stored:
                        raise CheckpointError(f"{path.parent} holds {name} twice.")
                    # A slice knows its shape from the header, without reading the tensor.
                    shape = tuple(file.get_slice(stored_name).get_shape())
                    stored[name] = StoredTensor(path, stored_name, shape)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} must be a safetensors file: {error}.") from None
    return stored


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], *, tied: bool
) -> None:
    """Compares the names and shapes of a model with those on disk.

    Args:
        expected: official name -> shape, for each tensor of the model.
        stored: the result of `read_headers`.
        tied: whether the output matrix is the embedding, and so may be absent.

    Raises:
        CheckpointError: they differ; the message lists every kind of difference.
    """
    optional = {OUTPUT_MATRIX} if tied else set()
    missing = sorted(set(expected) - set(stored) - optional)
    unexpected = sorted(set(stored) - set(expected))
    mis_shaped = [
        f"{name} is {stored[name].shape}, but the config makes it {shape}"
        for name, shape in sorted(expected.items())
        if name in stored and stored[name].shape != tuple(shape)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", mis_shaped))
    problems = [_list_names(kind, names) for kind, names in kinds if names]
    if problems:
        raise CheckpointError(
            "The weights do not fit the config; nothing was loaded. "
            + " ".join(problems)
            + " State the dimensions in config.json (heads: heatmap_config)."
        )


def _list_names(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{len(names)} {kind}: {'; '.join(names[:MAX_LISTED])}{more}."


def read_tensors(
    stored: Mapping[str, StoredTensor],
    device_of: Callable[[str], torch.device],
    dtype: torch.dtype,
) -> Iterator[dict[str, Tensor]]:
    """Reads all tensors in groups of at most `READ_BYTES`, or of one larger tensor.

    Args:
        stored: the result of `read_headers`.
        device_of: official name -> device to read the tensor to.
        dtype: the dtype to convert to.

    Yields:
        Official name -> tensor, for each group.
    """
    by_file = sorted(stored, key=lambda name: stored[name].path)
    # Without memory: grouping reads only shapes and dtypes.
    sizes = {name: torch.empty(stored[name].shape, dtype=dtype, device="meta") for name in by_file}
    for names in group_by_bytes(sizes, None, READ_BYTES):
        tensors = {}
        # A file is mapped anew for each group: what was read of it need not stay in memory.
        for path in dict.fromkeys(stored[name].path for name in names):
            with safe_open(str(path), framework="pt") as file:
                for name in (n for n in names if stored[n].path == path):
                    tensor = file.get_tensor(stored[name].stored_name)
                    # A copy, because the alignment of a tensor inside the map would decide which
                    # kernel multiplies it, and so the last bit of the product.
                    tensors[name] = tensor.to(device_of(name), dtype, copy=True)
        yield tensors


def group_by_bytes(
    state: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int
) -> Iterator[list[str]]:
    """Groups names, in their order, so that the tensors of a group take at most `limit` bytes.

    Args:
        state: name -> tensor; only shapes and dtypes are read.
        dtype: the dtype to count in, None = each tensor's own.
        limit: bytes of a group; a larger tensor makes a group of its own.
    """
    names: list[str] = []
    size = 0
    for name, tensor in state.items():
        nbytes = tensor.numel() * (dtype or tensor.dtype).itemsize
        if names and size + nbytes > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names
