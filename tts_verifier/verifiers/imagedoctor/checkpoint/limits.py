"""Reads the limits of a reply from a checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.fields import integer_field, integer_fields, number_field
from tts_verifier.loading.files import read_json
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits

MAX_NEW_TOKENS: Final = 2048
"""Limit of a reply's length where a checkpoint states none; the official scorer's."""
_FILE: Final = "generation_config.json"


def read_limits(folder: Path, config: ImageDoctorConfig) -> GenerationLimits:
    """Reads the limits of a reply from generation_config.json, which may be absent.

    Decoding is greedy. Qwen2.5-VL's own file asks for sampling at temperature 1e-6, which is the
    same. The file's repetition penalty and end tokens apply.

    Raises:
        CheckpointError: the file is not a JSON object, or a value cannot be used.
    """
    raw: Mapping[str, Any] = {}
    try:
        raw = read_json(folder, _FILE)
        # Both files count: Qwen's generation_config.json names more end tokens than config.json.
        end_tokens = {*config.eos_token_ids, *_end_tokens(raw, config)}
        length = raw.get("max_new_tokens")
        most = int(config.text["max_position_embeddings"])
        return GenerationLimits(
            MAX_NEW_TOKENS if length is None else integer_field("max_new_tokens", length, 1, most),
            tuple(sorted(end_tokens)),
            number_field("repetition_penalty", _or(raw.get("repetition_penalty"), 1.0), 0.01, 100),
        )
    except FileNotFoundError:
        return GenerationLimits(MAX_NEW_TOKENS, tuple(sorted(config.eos_token_ids)))
    except CheckpointError as error:
        raise CheckpointError(f"{folder / _FILE}: {error}" if raw else str(error)) from None


def _end_tokens(raw: Mapping[str, Any], config: ImageDoctorConfig) -> tuple[int, ...]:
    eos = _or(raw.get("eos_token_id"), [])
    most = int(config.text["vocab_size"]) - 1
    return integer_fields(
        "eos_token_id", eos if isinstance(eos, list) else [eos], 0, most, most=1000
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
