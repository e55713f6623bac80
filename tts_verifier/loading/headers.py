"""Reads the headers of safetensors files: the names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.files import file_inside, read_json


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of the tensors in a safetensors file.

    Raises:
        CheckpointError: the file is damaged. Its header may be too large, or its tensors overlap,
            leave gaps or exceed the file.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            # A slice knows its shape from the header, without reading the tensor.
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises what its parts raise
        raise CheckpointError(f"{path} must be a safetensors file: {error}.") from None


def indexed_files(folder: Path, index: str) -> list[Path]:
    """Returns the files that a safetensors index names, sorted by name.

    Raises:
        CheckpointError: it is no index, or it names a file that is missing or is not in the folder.
    """
    weight_map: Any = read_json(folder, index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(
            f"{folder / index} must be a safetensors index, whose weight_map names a file for "
            f"each tensor; weight_map is {str(weight_map)[:60]}."
        )
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{folder / index} must name its files with text, in weight_map.")
    names = sorted(set(weight_map.values()))
    if other := [name for name in names if not name.endswith(".safetensors")]:
        raise CheckpointError(
            f"Only safetensors are read, since a pickle can run code; {folder / index} names "
            f"{other[0]!r}. Convert it to safetensors first."
        )
    paths = [file_inside(folder, name) for name in names]
    if absent := [path.name for path in paths if not path.exists()]:
        raise CheckpointError(
            f"{folder / index} names files that are missing: {', '.join(absent[:12])}."
        )
    return paths
