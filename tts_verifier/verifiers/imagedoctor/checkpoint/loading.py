"""From a name to a model on its device: bundled, a folder, or the hub.

Modules are made without memory and every tensor is read straight into its place, so that
loading needs little more than the weights themselves. Names and shapes are compared before
anything is read (see `weights`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.verifiers.imagedoctor.checkpoint import weights
from tts_verifier.verifiers.imagedoctor.checkpoint.device_map import DeviceMap, Placement
from tts_verifier.verifiers.imagedoctor.generation import GenerationLimits
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.text.expected_scores import Numerals
from tts_verifier.verifiers.imagedoctor.text.instruction import Words

BUNDLED = "shapes"
MAX_NEW_TOKENS = 2048
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PATTERNS = ["*.json", "*.safetensors"]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Everything that a verifier is made of."""

    model: ImageDoctorModel
    words: Words
    processor: Processor
    limits: GenerationLimits


def load(
    folder: Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
) -> Checkpoint:
    """Loads a folder for inference.

    Args:
        folder: with config.json, safetensors, tokenizer.json and preprocessor_config.json.
        dtype: None = bfloat16 on a GPU, float32 on a CPU.
        device: None = the GPU if there is one.
        device_map: spreads language layers over devices, see `placement.Placement`.

    Raises:
        CheckpointError: something is missing, or the parts do not fit together.
        InputError: `dtype` is not one to compute in, or `device_map` is not usable.
    """
    config = ImageDoctorConfig.from_folder(folder)
    main = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    place = Placement(main, int(config.text["num_hidden_layers"]), device_map)
    words = Words.from_folder(folder, config)
    processor = Processor.from_folder(folder, config)
    limits = read_limits(folder, config)
    if (numerals := Numerals.of(words)) is not None:
        limits = replace(limits, watched_groups=(numerals.digits, numerals.units))
    model = load_model(folder, dtype=_dtype(dtype, place.main), place=place)
    return Checkpoint(model.requires_grad_(False).eval(), words, processor, limits)


def load_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, place: Placement | None = None
) -> ImageDoctorModel:
    """Loads config and weights alone, ready for training; `place`: None = all on the CPU.

    Raises:
        CheckpointError: a tensor is missing, unexpected or mis-shaped; all are listed.
    """
    from accelerate import init_empty_weights

    config = ImageDoctorConfig.from_folder(folder)
    place = place or Placement(torch.device("cpu"), int(config.text["num_hidden_layers"]))
    with init_empty_weights(include_buffers=False):
        model = ImageDoctorModel(config)
    found = weights.shapes(weights.files(folder))
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    weights.check(expected, found, tied=config.tied)
    for part in weights.read(found, place.of, dtype):
        model.load_state_dict(part, strict=False, assign=True)
    model.tie()
    return place.settle(model)


def resolve(name_or_path: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """Finds a checkpoint's folder, downloading it if it is a hub id that is not cached.

    Args:
        name_or_path: "shapes" (bundled), a folder, or a hub id like "GYX97/ImageDoctor".
        revision: branch, tag or commit on the hub.
        offline: only look into the cache.

    Raises:
        CheckpointError: there is no such thing, or it cannot be reached.
    """
    if name_or_path == BUNDLED:
        folder = Path(str(resources.files("tts_verifier.shapes") / "weights" / "verifier"))
        if not folder.is_dir():
            raise CheckpointError(
                f"The bundled verifier's weights are missing: {folder}. Install the package anew."
            )
        return folder
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(name_or_path):
        raise CheckpointError(
            f"A verifier is {BUNDLED!r}, a folder, or a hub id like 'GYX97/ImageDoctor'; "
            f"{name_or_path!r} is none of them."
        )
    return _download(name_or_path, revision, offline=offline)


def _download(repo: str, revision: str | None, *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repo, revision=revision, allow_patterns=_PATTERNS, local_files_only=offline
        )
    except Exception as error:  # the hub's errors share no base class
        what = "is not in the offline cache" if offline else "cannot be fetched from the hub"
        raise CheckpointError(
            f"{repo} (revision {revision or 'main'}) {what}: {type(error).__name__}. Check the "
            "name and the network, or give a local folder."
        ) from error
    return Path(found)


def read_limits(folder: Path, config: ImageDoctorConfig) -> GenerationLimits:
    """Reads what matters of generation_config.json; the file may be absent.

    Decoding is greedy: Qwen2.5-VL's own file asks for sampling at temperature 1e-6, which is
    the same. Its repetition penalty and end tokens are kept.
    """
    path = folder / "generation_config.json"
    raw: Mapping[str, Any] = {}
    if path.exists():
        try:
            raw = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} must be a JSON object: {error}.") from None
    eos = raw.get("eos_token_id") or ()
    ends = {*config.eos_token_ids, *(eos if isinstance(eos, list | tuple) else (eos,))}
    return GenerationLimits(
        int(raw.get("max_new_tokens") or MAX_NEW_TOKENS),
        tuple(sorted(ends)),
        float(raw.get("repetition_penalty") or 1.0),
    )


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise InputError(f"dtype must be float32, bfloat16, float16 or float64, got {dtype!r}.")
    return found
