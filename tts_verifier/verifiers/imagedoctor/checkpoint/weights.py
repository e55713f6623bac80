"""Weights on disk: safetensors shards, the two generations of names, exact checks.

transformers until 4.51 names the parts `visual.*` and `model.*`, as the released weights do;
later ones `model.visual.*` and `model.language_model.*`. Nothing is ever skipped silently: a
missing, unexpected or mis-shaped tensor is an error that lists it. Pickles are not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig

SHARD_BYTES = 12 * 2**20
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TIED = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
NEWER = (("model.visual.", "visual."), ("model.language_model.", "model."))
PART_BYTES = 2**28
LISTED = 12
"""How many names an error shows of each kind."""


def official_name(name: str) -> str:
    """Returns the released name of a tensor of either generation."""
    for newer, older in NEWER:
        if name.startswith(newer):
            return older + name.removeprefix(newer)
    return name


def to_save(state: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """Returns what is written: everything, but a tied output matrix only once."""
    return {name: t for name, t in state.items() if not (tied and name == TIED)}


def write_config(folder: Path, config: ImageDoctorConfig, dtype: torch.dtype | None) -> None:
    """Writes config.json: as it was read, the heads stated, and the dtype of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    written = config.to_dict()
    if dtype is not None:
        written["torch_dtype"] = str(dtype).removeprefix("torch.")
    text = json.dumps(written, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def write(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    value: Callable[[str], Tensor] | None = None,
) -> None:
    """Writes shards and, if there are several, their index; older ones in the folder go.

    Args:
        folder: must exist.
        state: official name -> tensor.
        dtype: to store in, None = as it is.
        shard_bytes: a shard's largest size; a larger tensor gets a shard of its own.
        value: where the numbers come from if not from `state`, whose shapes then suffice.
    """
    shards = list(_shards(state, dtype, shard_bytes))
    total = 0
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        name = SINGLE
        if len(shards) > 1:
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        read = value or state.__getitem__
        # Copied, as joined weights share memory, which safetensors refuses.
        tensors = {key: read(key).detach().to("cpu", dtype, copy=True) for key in names}
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, str(folder / name), metadata={"format": "pt"})
        total += sum(t.nbytes for t in tensors.values())
        where.update(dict.fromkeys(names, name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    new = {*where.values(), INDEX} if len(shards) > 1 else {*where.values()}
    for path in (*folder.glob("model*.safetensors"), folder / INDEX):
        if path.name not in new:
            path.unlink(missing_ok=True)


def _shards(
    state: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int
) -> Iterator[list[str]]:
    """Groups names, in order, into shards of at most `limit` bytes."""
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


def files(folder: Path) -> list[Path]:
    """Finds a folder's safetensors files, by its index if there is one.

    Raises:
        CheckpointError: there are none, only pickles, or one that the index names is missing.
    """
    index = folder / INDEX
    if index.exists():
        try:
            where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(where.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} must be a safetensors index: {error!r}.") from None
        found = [folder / name for name in names]
        if absent := [path.name for path in found if not path.exists()]:
            raise CheckpointError(f"{index} names files that are missing: {', '.join(absent)}.")
        return found
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise CheckpointError(
            f"Only safetensors are read, since a pickle can run code; {folder} has "
            f"{', '.join(pickles)}. Convert it to safetensors first."
        )
    raise CheckpointError(f"{folder} has no weights: neither {SINGLE} nor {INDEX} is there.")


def shapes(paths: list[Path]) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """Reads the headers: official name -> file, stored name, shape.

    Raises:
        CheckpointError: a file is damaged, or holds a tensor under both names.
    """
    found: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for path in paths:
        try:
            with safe_open(str(path), framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118  (not a mapping)
                    name = official_name(stored)
                    if name in found:
                        raise CheckpointError(f"{path.parent} holds {name} twice.")
                    found[name] = (path, stored, tuple(file.get_slice(stored).get_shape()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} must be a safetensors file: {error}.") from None
    return found


def check(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[Path, str, tuple[int, ...]]],
    *,
    tied: bool,
) -> None:
    """Compares names and shapes.

    Raises:
        CheckpointError: lists every kind of difference.
    """
    optional = {TIED} if tied else set()
    missing = sorted(set(expected) - set(found) - optional)
    unexpected = sorted(set(found) - set(expected))
    mis_shaped = [
        f"{name} is {found[name][2]}, the config makes it {shape}"
        for name, shape in sorted(expected.items())
        if name in found and found[name][2] != tuple(shape)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", mis_shaped))
    problems = [_listed(kind, names) for kind, names in kinds if names]
    if problems:
        raise CheckpointError(
            "The weights do not fit the config, nothing was loaded. "
            + " ".join(problems)
            + " State the dimensions in config.json (heads: heatmap_config)."
        )


def read(
    found: Mapping[str, tuple[Path, str, tuple[int, ...]]],
    device_of: Callable[[str], torch.device],
    dtype: torch.dtype,
) -> Iterator[dict[str, Tensor]]:
    """Reads all tensors in parts, each at most `PART_BYTES` or one tensor.

    A file is mapped anew for each part, so that no more of it stays in memory. Tensors are
    copied out of the map, whose layout would else decide their alignment and with it the
    last bit of a product.
    """
    by_file = sorted(found, key=lambda name: found[name][0])
    shapes = {name: torch.empty(found[name][2], dtype=dtype, device="meta") for name in by_file}
    for names in _shards(shapes, None, PART_BYTES):
        part = {}
        for path in dict.fromkeys(found[name][0] for name in names):
            with safe_open(str(path), framework="pt") as file:
                for name in (n for n in names if found[n][0] == path):
                    tensor = file.get_tensor(found[name][1])
                    part[name] = tensor.to(device_of(name), dtype, copy=True)
        yield part


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} {kind}: {'; '.join(names[:LISTED])}{more}."
