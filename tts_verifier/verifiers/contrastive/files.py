"""Reads the files of judges: weights of several formats, and modules built from them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.files import file_inside
from tts_verifier.loading.headers import indexed_files
from tts_verifier.loading.hub import HUB_ID, download
from tts_verifier.loading.regular_files import user_path

PLAIN_FILES: Final = ("*.json", "*.txt")
"""Configs and tokenizers."""
_MOST_LISTED: Final = 8

Built = TypeVar("Built", bound=nn.Module)


def judge_folder(
    name_or_path: str | Path, *, files: Sequence[str], revision: str | None = None
) -> Path:
    """Returns the folder of a judge's files, which come from the hub if it is no folder.

    Raises:
        CheckpointError: there is no such folder, and the hub has no such files.
    """
    if (folder := user_path(name_or_path)).is_dir():
        return folder
    if not HUB_ID.fullmatch(str(name_or_path)):
        raise CheckpointError(
            "A judge's checkpoint is a folder, a file of weights where the judge says so, or a hub "
            f"id like 'openai/clip-vit-large-patch14'; {str(name_or_path)!r} is none of them."
        )
    return download(str(name_or_path), files, revision=revision)


def judge_file(name_or_path: str | Path, filename: str, *, revision: str | None = None) -> Path:
    """Returns a file of weights: the file itself, or the one of a folder or of the hub.

    Args:
        name_or_path: a file, a folder or a hub id.
        filename: its official name in the folder. A file of the same stem that ends in
            .safetensors is preferred.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: there is no such file.
    """
    path = user_path(name_or_path)
    if path.is_file():
        return path
    safe = str(Path(filename).with_suffix(".safetensors"))
    folder = judge_folder(name_or_path, files=(safe, filename), revision=revision)
    for name in (safe, filename):
        if (found := file_inside(folder, name)).exists():
            return found
    raise CheckpointError(
        f"{name_or_path} has neither {filename} nor {safe}. Name the folder or the file."
    )


def weights_of_folder(folder: Path) -> dict[str, Tensor]:
    """Reads the weights of a folder in the format of transformers: safetensors, else a pickle.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    index, single = "model.safetensors.index.json", "model.safetensors"
    if file_inside(folder, index).exists():
        paths = indexed_files(folder, index)
    else:
        names = (single, "pytorch_model.bin")
        paths = [p for name in names if (p := file_inside(folder, name)).exists()][:1]
    if not paths:
        raise CheckpointError(
            f"{folder} has no weights: none of {single}, {index} and pytorch_model.bin is there."
        )
    return {name: tensor for path in paths for name, tensor in read_weights(path).items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a file of weights: name -> tensor, on the CPU.

    Args:
        path: a safetensors file; or a pickle of torch, of which tensors alone are read, so that no
            code in it runs. The tensors of a training checkpoint are those under `state_dict`.

    Raises:
        CheckpointError: the file is damaged, or it holds anything but tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "A pickle of weights must hold tensors alone, since other objects can run code; "
            f"{path} holds more, or is damaged. Convert it to safetensors on a machine that may "
            "run it."
        ) from error
    except Exception as error:  # torch and safetensors raise what their parts raise
        raise CheckpointError(
            f"{path} must be a file of weights, .safetensors or of torch: {str(error)[:200]}."
        ) from error
    tensors = value.get("state_dict", value) if isinstance(value, dict) else value
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(
            f"{path} must hold tensors by name, or have them under 'state_dict'; it holds a "
            f"{type(value).__name__} of something else."
        )
    return dict(tensors)


def build_module(
    make: Callable[[], Built],
    tensors: Mapping[str, Tensor],
    *,
    source: str | Path,
    dtype: torch.dtype,
    ignored: Collection[str] = (),
) -> Built:
    """Builds a module without memory and gives it its weights; ready for inference.

    Args:
        make: builds the module.
        tensors: by the module's names.
        source: where they come from, for the message.
        dtype: of the parameters.
        ignored: names that may be there and are not used.

    Raises:
        CheckpointError: a tensor is missing, unexpected or mis-shaped, or the sizes in the config
            are none of which a module can be built.
    """
    from accelerate import init_empty_weights

    # Buffers get real memory: they are small, and files do not hold them.
    try:
        with init_empty_weights(include_buffers=False):
            module = make()
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{source} must state sizes of which a model can be built: {str(error)[:200]}."
        ) from error
    used = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    kinds = {
        "missing": sorted(expected.keys() - used.keys()),
        "unexpected": sorted(used.keys() - expected.keys()),
        "mis-shaped": [
            f"{name} is {tuple(used[name].shape)} and not {shape}"
            for name, shape in sorted(expected.items())
            if name in used and tuple(used[name].shape) != shape
        ],
    }
    if problems := [f"{len(v)} {kind}: {_listed(v)}" for kind, v in kinds.items() if v]:
        raise CheckpointError(
            f"The weights of {source} do not fit the model; {'. '.join(problems)}. Take weights "
            "and config from the same checkpoint, and name the judge that they belong to."
        )
    module.load_state_dict({name: tensor.to(dtype) for name, tensor in used.items()}, assign=True)
    return module.requires_grad_(False).eval()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return "; ".join(names[:_MOST_LISTED]) + more


def check_layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raises CheckpointError if a config claims more layers than there are tensors."""
    for part, values in config.items():
        layers = values.get("num_hidden_layers", 0) if isinstance(values, Mapping) else 0
        if not isinstance(layers, int) or layers > len(tensors):
            raise CheckpointError(
                f"{source}: {part}.num_hidden_layers {layers!r:.60} must fit the weights, which "
                f"are {len(tensors)} tensors. Take both from the same checkpoint."
            )
