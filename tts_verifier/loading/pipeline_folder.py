"""Checks the folder of a diffusers pipeline before diffusers reads it.

diffusers and transformers build a model from its config first and read its weights afterwards; and
they would read a pickle, which can run code, where no safetensors are. So this module reads the
small files and the headers of the large ones before. What a config claims must fit the shapes in
the headers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.fields import check_numbers
from tts_verifier.loading.files import file_inside, read_json
from tts_verifier.loading.headers import indexed_files, tensor_shapes

INDEX: Final = "model_index.json"
_LIBRARIES: Final = ("diffusers", "transformers")
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"})
_LARGEST_NUMBER: Final = 2**24
"""The largest number in a config that is no size of a tensor, such as a number of positions."""
_LARGEST_SIDE: Final = 2**16
_LARGEST_IN_SCHEDULER: Final = 2**20
_SPARE: Final = 1024
"""By how much a size may exceed the largest dimension of any tensor, and layers the tensors: some
fields have values that are not used."""
_SWITCH = re.compile(r"^(?:use|is|has|do|with|enable|add|apply|force|output)_")

_LAYERS = re.compile(r"(?:^|_)(?:layers|layers_per_block|blocks|depth|resnets)$")
_SIDES = re.compile(r"(?:^|_)(?:sample_size|image_size)$")
_SIZES = re.compile(
    r"(?:^|_)(?:size|dim|dims|channels|width|features|heads|groups|in_dim|out_dim|d_model|d_ff"
    r"|d_kv)$"
)


@dataclass(frozen=True, slots=True)
class _Held:
    """What the weights of a component hold."""

    tensors: int
    """The number of tensors."""
    largest: int
    """The largest dimension of a tensor."""
    numbers: int
    """The number of all values."""


def check_pipeline_folder(folder: Path) -> None:
    """Raises CheckpointError when a pipeline's folder cannot be trusted or cannot be right.

    Args:
        folder: has model_index.json, and a folder for each component.

    Raises:
        CheckpointError: a component has pickles only, or a class that is not of diffusers or
            transformers; a file is outside the folder, damaged or too large; a config has a size
            that is no integer, or that does not fit the weights.
    """
    try:
        index = read_json(folder, INDEX)
    except FileNotFoundError:
        raise CheckpointError(
            f"A pipeline needs a {INDEX}; {folder / INDEX} is missing. Name a folder that "
            "save_pretrained of diffusers wrote."
        ) from None
    if not isinstance(index.get("_class_name"), str):
        raise CheckpointError(
            f"{folder / INDEX} must name a pipeline of diffusers as _class_name, got "
            f"{index.get('_class_name')!r}. A pipeline whose code comes with it is not run."
        )
    for name, value in index.items():
        if isinstance(value, list) and value != [None, None]:
            _check_component(folder, name, value)


def _check_component(folder: Path, name: str, value: list[Any]) -> None:
    if len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise CheckpointError(
            f"{folder / INDEX} must give {name} a library and a class, got {str(value)[:80]}."
        )
    library = value[0]
    if library not in _LIBRARIES and not _is_part_of_diffusers(library):
        raise CheckpointError(
            f"{folder / INDEX} must take {name} from {' or '.join(_LIBRARIES)}, got {library!r}. "
            "Code that comes with a checkpoint is not run."
        )
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{folder / INDEX} must name a component, got {name!r}.")
    path = folder / name
    if not path.is_dir():
        return  # diffusers says which components it misses
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"A checkpoint must lie in its folder, but {path} is a link to {path.resolve()}."
        )
    files = sorted(entry.name for entry in path.iterdir() if not entry.is_dir())
    for file in files:
        file_inside(path, file)
    for file in (file for file in files if file.endswith(".json")):
        _check_json(path, file)
    _check_weights(path, files)


def _is_part_of_diffusers(library: str) -> bool:
    """Returns whether a name is that of a pipeline's module, such as "stable_diffusion"."""
    if not library.isidentifier():
        return False
    from diffusers import pipelines

    return hasattr(pipelines, library)


def _check_json(path: Path, file: str) -> None:
    values = read_json(path, file)
    if file == "scheduler_config.json":
        with _errors_named(path / file):
            check_numbers("", values, _LARGEST_IN_SCHEDULER)


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Puts a file's name before what a check of it says."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _check_weights(path: Path, files: list[str]) -> None:
    """Compares a component's config with the headers of its weights, if it has weights."""
    weights = [path / file for file in files if file.endswith(".safetensors")]
    for index in (file for file in files if file.endswith(".safetensors.index.json")):
        weights += indexed_files(path, index)
    pickles = [file for file in files if Path(file).suffix in _PICKLES]
    if pickles and not weights:
        raise CheckpointError(
            f"Only safetensors are read, since a pickle can run code; {path} has "
            f"{', '.join(pickles[:3])}. Convert it to safetensors first, with save_pretrained of "
            "diffusers or transformers on a machine that may run it."
        )
    if not weights or "config.json" not in files:
        return
    shapes = [shape for file in dict.fromkeys(weights) for shape in tensor_shapes(file).values()]
    held = _Held(
        len(shapes),
        max((side for shape in shapes for side in shape), default=0),
        sum(math.prod(shape) for shape in shapes),
    )
    config = read_json(path, "config.json")
    with _errors_named(path / "config.json"):
        check_numbers("", config, max(_LARGEST_NUMBER, held.numbers))
        _check_size_fields("", config, held)


def _check_size_fields(where: str, values: Mapping[str, Any], held: _Held) -> None:
    """Raises CheckpointError at the first size that is not valid or not that of the weights."""
    for key, value in values.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping):
            _check_size_fields(f"{name}.", value, held)
        elif value is not None and (limit := _limit(key, values, held)) is not None:
            for item in value if isinstance(value, list) else [value]:
                _check_size(name, item, limit, held)


def _limit(key: str, values: Mapping[str, Any], held: _Held) -> int | None:
    """Returns the most that a field can be for weights like these; None if it is no size."""
    if _SWITCH.match(key):
        return None
    if _LAYERS.search(key):
        return held.tensors + _SPARE
    # A table of positions on a square, and in AuraFlow of positions in a row.
    if key == "pos_embed_max_size" and "AuraFlow" not in str(values.get("_class_name")):
        return math.isqrt(4 * held.largest) + 64
    if _SIDES.search(key):
        return _LARGEST_SIDE
    # A product of two sizes, such as heads and their size, is a dimension; neither exceeds it.
    return 8 * held.largest + _SPARE if _SIZES.search(key) else None


def _check_size(name: str, value: Any, limit: int, held: _Held) -> None:
    # Lists of lists occur, and so do tables in lists; none of them is a size.
    if isinstance(value, (list, Mapping)) or value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"{name} must be a size, an integer from 0, got {str(value)[:60]!r}.")
    if value > limit:
        raise CheckpointError(
            f"{name} {value} must fit the weights, which are {held.tensors} tensors of at most "
            f"{held.largest} a side. Take both from the same checkpoint."
        )
