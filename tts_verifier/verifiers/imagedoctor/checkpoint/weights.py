"""Reads weights from safetensors shards, under both generations of names, with exact checks.

Up to version 4.51 transformers names the parts `visual.*` and `model.*`, as the released weights
do; later versions name them `model.visual.*` and `model.language_model.*`. Nothing is skipped
silently: a missing, unexpected or mis-shaped tensor is an error that lists it. Pickles are not
read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.files import file_inside
from tts_verifier.loading.headers import indexed_files, tensor_shapes
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
OUTPUT_MATRIX = "lm_head.weight"
"""May be the embedding itself ("tied"); then it is not stored."""
EMBEDDING = "model.embed_tokens.weight"
NEWER_PREFIXES = (("model.visual.", "visual."), ("model.language_model.", "model."))
"""(prefix of newer transformers, released prefix)."""
READ_BYTES = 2**28
"""The most bytes of tensors that are read at a time: loading needs so much spare memory."""
CLAIM_SLACK = 10**9
"""By how many numbers a config may exceed its weights before it is refused unbuilt."""
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
        CheckpointError: there are no weights, only pickles, or a file is missing or lies outside
            the folder.
    """
    if file_inside(folder, INDEX_FILE).exists():
        return indexed_files(folder, INDEX_FILE)
    if (single := file_inside(folder, SINGLE_FILE)).exists():
        return [single]
    suffixes = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in suffixes)
    if pickles:
        raise CheckpointError(
            f"Only safetensors are read, since a pickle can run code; {folder} has "
            f"{', '.join(pickles)}. Convert it to safetensors first."
        )
    raise CheckpointError(
        f"{folder} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there."
    )


def read_headers(paths: list[Path]) -> dict[str, StoredTensor]:
    """Reads the headers of safetensors files: official name -> tensor on disk.

    Raises:
        CheckpointError: a file is damaged, or a tensor is there under both its names.
    """
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        for stored_name, shape in tensor_shapes(path).items():
            name = official_name(stored_name)
            if name in stored:
                raise CheckpointError(f"{path.parent} holds {name} twice.")
            stored[name] = StoredTensor(path, stored_name, shape)
    return stored


def check_claims(config: ImageDoctorConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Refuses a config that claims far more than the files hold, before anything is built.

    Args:
        config: of the checkpoint.
        stored: the result of `read_headers`.

    Raises:
        CheckpointError: it names more layers than there are tensors, or its matrices are many
            times as large as all tensors together.
    """
    text, vision = config.text, config.vision
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    layers = {"num_hidden_layers": config.layers, "vision_config.depth": vision["depth"]}
    for name, count in {**layers, "heatmap_config.depth": config.heatmap.depth}.items():
        if count > max(len(stored), 1):
            raise CheckpointError(
                f"{name} {count} must fit the weights, which are {len(stored)} tensors. Take both "
                "from the same checkpoint."
            )
    claimed = {
        "vocab_size x hidden_size": text["vocab_size"] * text["hidden_size"],
        "num_hidden_layers x hidden_size x intermediate_size": config.layers
        * text["hidden_size"]
        * text["intermediate_size"],
        "vision_config: depth x hidden_size x intermediate_size": vision["depth"]
        * vision["hidden_size"]
        * vision["intermediate_size"],
        "vision_config: (hidden_size x spatial_merge_size²)²": (
            vision["hidden_size"] * vision["spatial_merge_size"] ** 2
        )
        ** 2,
        "heatmap_config: width x mlp": config.heatmap.width * config.heatmap.mlp,
        "heatmap_config: the largest of stem and stages, squared, x 9": 9
        * max(*config.heatmap.stem, *config.heatmap.stages) ** 2,
    }
    for name, count in claimed.items():
        # Sizes that are wrong by less are listed tensor by tensor, once the model is built.
        if count > 4 * held + CLAIM_SLACK:
            raise CheckpointError(
                f"{name} must fit the weights: config.json claims {count} numbers there, but the "
                f"files hold {held} in all. Take both from the same checkpoint."
            )


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
    problems = [list_names(kind, names) for kind, names in kinds if names]
    if problems:
        raise CheckpointError(
            "The weights do not fit the config; nothing was loaded. "
            + " ".join(problems)
            + " State the dimensions in config.json (heads: heatmap_config)."
        )


def list_names(kind: str, names: list[str]) -> str:
    """Returns a sentence that lists the first of some names, such as "2 missing: a; b."."""
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
