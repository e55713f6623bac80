"""Loads checkpoints: the bundled one, a folder, or one from the hub.

The modules are built without memory, and each tensor is read straight to its device. So loading
needs little more memory than the weights. Names and shapes are compared before any tensor is
read (see `weights`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

import torch

from tts_verifier.errors import CheckpointError, RunWarning
from tts_verifier.loading.devices import check_device, check_dtype
from tts_verifier.loading.hub import HUB_ID, download
from tts_verifier.loading.memory import fits_on_device
from tts_verifier.loading.regular_files import user_path
from tts_verifier.verifiers.imagedoctor.checkpoint import weights
from tts_verifier.verifiers.imagedoctor.checkpoint.device_map import DeviceMap, LayerDevices
from tts_verifier.verifiers.imagedoctor.checkpoint.limits import read_limits
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits
from tts_verifier.verifiers.imagedoctor.text.expected_scores import ScoreTokens
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

BUNDLED_VERIFIER: Final = "shapes"
"""Name of the checkpoint that comes with this package."""
BUNDLED_REVISION: Final = "2026-11-26"
"""The day of its weights. A log holds it, so a run that older weights verified is another run."""
# No pickles and no Python files: neither is read, and both could run code.
_HUB_FILES = ["*.json", "*.safetensors"]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The parts that a verifier is made of."""

    model: ImageDoctorModel
    """The network, on its devices. An engine fuses some of its weights in place at first use;
    its state dict stays the same."""
    tokenizer: PromptTokenizer
    """Encodes conversations and decodes replies."""
    processor: Processor
    """Turns images into patches."""
    limits: GenerationLimits
    """When a reply ends, and which probabilities are recorded."""


def load_checkpoint(
    folder: Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
) -> Checkpoint:
    """Loads a checkpoint folder for inference.

    Args:
        folder: has config.json, safetensors, tokenizer.json and preprocessor_config.json.
        dtype: the dtype to compute in, None = bfloat16 on a GPU, float32 on a CPU.
        device: the main device, None = the GPU if there is one.
        device_map: spreads the language model's layers over devices, see `LayerDevices`.

    Raises:
        CheckpointError: a file is missing, or the parts do not fit together.
        InputError: `dtype` is not one to compute in, this machine has no such device, or
            `device_map` is not usable.
    """
    main = check_device(device)
    if main is None:
        main = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen_dtype = check_dtype(dtype)
    config = ImageDoctorConfig.from_folder(folder)
    devices = LayerDevices(main, config.layers, device_map)
    # The small files come first: a fault in them shows before the weights are read.
    tokenizer = PromptTokenizer.from_folder(folder, config)
    processor = Processor.from_folder(folder, config)
    limits = read_limits(folder, config)
    if (score_tokens := ScoreTokens.from_tokenizer(tokenizer)) is not None:
        limits = replace(limits, watched_groups=(score_tokens.digits, score_tokens.units))
    usual_dtype = torch.float32 if devices.main.type == "cpu" else torch.bfloat16
    compute_dtype = usual_dtype if chosen_dtype is None else chosen_dtype
    model = load_model(folder, config, dtype=compute_dtype, devices=devices)
    return Checkpoint(model.requires_grad_(False).eval(), tokenizer, processor, limits)


def load_copies(
    folder: Path, model: ImageDoctorModel, devices: Sequence[torch.device]
) -> list[ImageDoctorModel]:
    """Loads a checkpoint's network again onto further devices, as `load_checkpoint` does.

    Args:
        folder: see `load_checkpoint`.
        model: the network that was loaded first; gives config and dtype.
        devices: one for each copy.
    """
    config, dtype = model.config, model.lm_head.weight.dtype
    places = [LayerDevices(device, config.layers) for device in devices]
    copies = [load_model(folder, config, dtype=dtype, devices=place) for place in places]
    return [copy.requires_grad_(False).eval() for copy in copies]


def load_model(
    folder: Path,
    config: ImageDoctorConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    devices: LayerDevices | None = None,
) -> ImageDoctorModel:
    """Loads the network alone, ready for training.

    Args:
        folder: has config.json and safetensors.
        config: the folder's config, None = read it.
        dtype: the dtype of the parameters.
        devices: the device of every tensor, None = all on the CPU.

    Raises:
        CheckpointError: a tensor is missing, unexpected or mis-shaped; the message lists all.
    """
    from accelerate import init_empty_weights

    config = config or ImageDoctorConfig.from_folder(folder)
    devices = devices or LayerDevices(torch.device("cpu"), config.layers)
    stored = weights.read_headers(weights.weight_files(folder))
    weights.check_claims(config, stored)
    # Buffers get real memory: they are small, and files do not hold the rotary frequencies.
    try:
        with init_empty_weights(include_buffers=False):
            model = ImageDoctorModel(config)
    except RuntimeError as error:
        # Each tensor has memory for a moment: one alone may be too large for this machine.
        raise CheckpointError(
            f"config.json of {folder} must state sizes of which a model can be built; torch says: "
            f"{error}"
        ) from error
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    weights.check_shapes(expected, stored, tied=config.tied)
    for tensors in weights.read_tensors(stored, devices.device_of, dtype):
        # Not strict, because each call brings only some tensors; `check_shapes` was strict.
        model.load_state_dict(tensors, strict=False, assign=True)
    model.tie()  # assigning has given the output matrix and the embedding separate tensors
    return devices.connect(model)


def gpu_that_is_full(folder: Path) -> str | None:
    """Returns the GPU if there is one and a checkpoint does not fit on it now, otherwise None."""
    if not torch.cuda.is_available():
        return None
    gpu = str(torch.device("cuda", torch.cuda.current_device()))
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if fits_on_device(nbytes, gpu):
        return None
    warnings.warn(
        f"The verifier's {nbytes / 2**30:.1f} GiB do not fit on {gpu} beside what is there. It "
        "waits in host memory, and a run moves it to the GPU in turns with the generator. Give a "
        "device to place it yourself.",
        RunWarning,
        stacklevel=4,  # the caller of Verifier.from_pretrained
    )
    return gpu


def find_checkpoint(
    name_or_path: str | Path, *, revision: str | None = None, offline: bool = False
) -> Path:
    """Finds a checkpoint's folder; downloads it if it is a hub id that is not cached.

    Args:
        name_or_path: "shapes" (bundled), a folder, or a hub id like "GYX97/ImageDoctor".
        revision: branch, tag or commit on the hub.
        offline: True looks only into the cache.

    Raises:
        CheckpointError: there is no such checkpoint, or the hub cannot be reached.
    """
    if name_or_path == BUNDLED_VERIFIER:
        folder = Path(str(resources.files("tts_verifier.shapes") / "weights" / "verifier"))
        if not folder.is_dir():
            raise CheckpointError(
                f"The bundled verifier's weights are missing: {folder}. Install the package anew."
            )
        return folder
    folder = user_path(name_or_path)
    name_or_path = str(name_or_path)
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(name_or_path):
        raise CheckpointError(
            f"A verifier is {BUNDLED_VERIFIER!r}, a folder, or a hub id like 'GYX97/ImageDoctor'; "
            f"{name_or_path!r} is none of them."
        )
    return download(name_or_path, _HUB_FILES, revision=revision, offline=offline)
