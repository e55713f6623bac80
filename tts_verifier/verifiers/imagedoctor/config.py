"""What the network is made of: every dimension, token id and weight, read from config.json.

Two forms are read: the released one, flat in the manner of transformers 4.49 (`model_type`
"ImageDoctor", `rope_scaling`, a partial `vision_config`), and the nested one of today with
`text_config`. The released file says nothing about the heads; ours states them under
`heatmap_config`. A key that is absent takes the value of the official 3 B model
(Qwen2.5-VL-3B-Instruct and modify/transformers/modeling_qwen2_5_vl.py of ImageDoctor), and
loading checks all of them against the shapes of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_verifier.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig

TEXT: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
VISION: Mapping[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
}
IDS: Mapping[str, int] = {
    "image_token_id": 151655,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "misalignment_token_id": 151665,
    "artifact_token_id": 151666,
}
ROPE_THETA = 1e6
MROPE_SECTION = (16, 24, 24)


@dataclass(frozen=True, slots=True)
class HeatmapConfig:
    """Dimensions of the heads, by default the official ones.

    `width`: channels of prompt, image embedding and two-way transformer. `text_hidden`,
    `image_hidden`: middle width of the two projections, None = the language model's.
    `depth`, `heads`, `mlp`: of the two-way transformer. `stem`: outputs of the upscaler's
    two first convolutions; `stages`: of its four doublings. `mask_channels`: of the prompt
    encoder's mask branch, which is stored and never run. `weight`: of the map losses.
    """

    width: int = 768
    text_hidden: int | None = None
    image_hidden: int | None = None
    depth: int = 2
    heads: int = 8
    mlp: int = 2048
    stem: tuple[int, int] = (768, 384)
    stages: tuple[int, int, int, int] = (768, 384, 384, 192)
    mask_channels: int = 16
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads) or self.width % 2:
            raise CheckpointError(
                f"heatmap_config: width must be a multiple of 2 * heads, got width {self.width} "
                f"and heads {self.heads}."
            )
        if len(self.stem) != 2 or len(self.stages) != 4:
            raise CheckpointError(
                "heatmap_config: stem needs 2 widths and stages 4, "
                f"got {self.stem} and {self.stages}."
            )


@dataclass(frozen=True, slots=True)
class ImageDoctorConfig:
    """A whole model; `raw` is the config.json that it was read from.

    `text`, `vision`: arguments of transformers' own config classes.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    heads: HeatmapConfig
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    misalignment_token_id: int
    artifact_token_id: int
    tied: bool
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ImageDoctorConfig:
        """Reads the flat or the nested form.

        Raises:
            CheckpointError: a dimension does not fit the others, or the form is unknown.
        """
        nested = raw.get("text_config") or {}
        source = {**raw, **nested}
        text = {key: source.get(key, value) for key, value in TEXT.items()}
        text["rope_parameters"] = _rope(source, text)
        if source.get("use_sliding_window"):
            raise CheckpointError(
                "use_sliding_window must be false, as in the released model; it is true."
            )
        given = dict(raw.get("vision_config") or {})
        if "in_chans" in given:
            given.setdefault("in_channels", given["in_chans"])
        vision = {key: given.get(key, value) for key, value in VISION.items()}
        vision["out_hidden_size"] = given.get("out_hidden_size", text["hidden_size"])
        ids = {key: int(raw.get(key, value)) for key, value in IDS.items()}
        config = cls(
            text=text,
            vision=vision,
            heads=_heads(raw),
            **ids,
            tied=bool(raw.get("tie_word_embeddings", nested.get("tie_word_embeddings", True))),
            raw=dict(raw),
        )
        config._check()
        return config

    @classmethod
    def from_folder(cls, folder: Path) -> ImageDoctorConfig:
        """Reads `config.json` of a folder.

        Raises:
            CheckpointError: the file is missing, not JSON, or does not fit.
        """
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"A checkpoint needs a config.json; {path} is missing.") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} must be a JSON object: {error}.") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path} must be a JSON object, it is a {type(raw).__name__}.")
        return cls.from_dict(raw)

    @property
    def cell(self) -> int:
        """Side of one merged visual token, in model pixels (28 in the official model)."""
        return int(self.vision["patch_size"] * self.vision["spatial_merge_size"])

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a reply."""
        eos = self.text["eos_token_id"]
        return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)

    def text_config(self) -> Qwen2_5_VLTextConfig:
        """Returns transformers' config of the language model."""
        from transformers import Qwen2_5_VLTextConfig

        given = {**self.text, "rope_parameters": dict(self.text["rope_parameters"])}
        return Qwen2_5_VLTextConfig(**given)

    def vision_config(self) -> Qwen2_5_VLVisionConfig:
        """Returns transformers' config of the vision tower."""
        from transformers import Qwen2_5_VLVisionConfig

        return Qwen2_5_VLVisionConfig(**self.vision)

    def to_dict(self) -> dict[str, Any]:
        """Returns what config.json should say: as read, with the heads stated."""
        return {**self.raw, "heatmap_weight": self.heads.weight, "heatmap_config": _stated(self)}

    def _check(self) -> None:
        text, vision = self.text, self.vision
        head_dim = text["hidden_size"] // text["num_attention_heads"]
        section = text["rope_parameters"]["mrope_section"]
        if 2 * sum(section) != head_dim:
            raise CheckpointError(
                f"mrope_section must add up to half the head size {head_dim}, got {section}."
            )
        for part in (text, vision):
            if part["hidden_act"] != "silu":
                raise CheckpointError(f"hidden_act must be 'silu', got {part['hidden_act']!r}.")
        if vision["out_hidden_size"] != text["hidden_size"]:
            raise CheckpointError(
                "vision_config.out_hidden_size must equal hidden_size, got "
                f"{vision['out_hidden_size']} and {text['hidden_size']}."
            )
        for name in IDS:
            if not 0 <= getattr(self, name) < text["vocab_size"]:
                raise CheckpointError(
                    f"{name} must be below vocab_size {text['vocab_size']}, "
                    f"got {getattr(self, name)}."
                )


def _rope(source: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `rope_parameters` of today from either generation's keys."""
    given = source.get("rope_parameters") or source.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise CheckpointError(f"rope type must be 'default' or 'mrope', got {kind!r}.")
    return {
        "rope_type": "default",
        "rope_theta": given.get("rope_theta", source.get("rope_theta", ROPE_THETA)),
        "mrope_section": list(given.get("mrope_section", MROPE_SECTION)),
    }


def _heads(raw: Mapping[str, Any]) -> HeatmapConfig:
    given = dict(raw.get("heatmap_config") or {})
    known = {f.name for f in fields(HeatmapConfig)}
    if unknown := sorted(set(given) - known):
        raise CheckpointError(
            f"heatmap_config: unknown keys {unknown}; the known ones are {sorted(known)}."
        )
    given.setdefault("weight", float(raw.get("heatmap_weight", 1.0)))
    for name in ("stem", "stages"):
        if name in given:
            given[name] = tuple(given[name])
    return HeatmapConfig(**given)


def _stated(config: ImageDoctorConfig) -> dict[str, Any]:
    stated = asdict(config.heads)
    hidden = config.text["hidden_size"]
    for name in ("text_hidden", "image_hidden"):
        stated[name] = stated[name] or hidden
    return {key: list(v) if isinstance(v, tuple) else v for key, v in stated.items()}
