"""The dimensions, token ids and weights of an ImageDoctor, read from config.json.

Two forms are read: the released one, flat in the manner of transformers 4.49 (`model_type`
"ImageDoctor", `rope_scaling`, a partial `vision_config`), and the nested one of today, with
`text_config`. The released file does not describe the heatmap head; files that we write do, under
`heatmap_config`. An absent key takes the value of the official 3 B model (Qwen2.5-VL-3B-Instruct
and modify/transformers/modeling_qwen2_5_vl.py of ImageDoctor). Loading compares all dimensions
with the shapes of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.fields import integer_field, integer_fields, number_field, table_field
from tts_verifier.loading.files import read_json

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig

TEXT_DEFAULTS: Mapping[str, Any] = {
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
VISION_DEFAULTS: Mapping[str, Any] = {
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
# The heatmap tokens have the first free ids of Qwen2.5's tokenizer. The embedding is padded far
# enough to have rows for them.
TOKEN_ID_DEFAULTS: Mapping[str, int] = {
    "image_token_id": 151655,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "misalignment_token_id": 151665,
    "artifact_token_id": 151666,
}
_RANGES: Mapping[str, tuple[int, int]] = {
    "vocab_size": (1, 2**22),
    "hidden_size": (1, 2**16),
    "intermediate_size": (1, 2**20),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "max_position_embeddings": (1, 2**24),
    "depth": (1, 1024),
    "num_heads": (1, 1024),
    "in_channels": (1, 64),
    "patch_size": (1, 256),
    "spatial_merge_size": (1, 16),
    "temporal_patch_size": (1, 16),
    "tokens_per_second": (1, 1000),
    "window_size": (1, 2**16),
    "out_hidden_size": (1, 2**16),
}
"""Field -> its least and its largest value: ten times what any model has, and no more."""
_FRACTIONS = ("initializer_range", "rms_norm_eps", "attention_dropout")
DEFAULT_ROPE_THETA = 1e6
DEFAULT_MROPE_SECTION = (16, 24, 24)
"""Frequencies of time, row and column: half the size of an attention head."""


@dataclass(frozen=True, slots=True)
class HeatmapConfig:
    """Dimensions of the heatmap head; the defaults are the official ones."""

    width: int = 768
    """Channels of the text prompt, the image embedding and the two-way transformer."""
    text_hidden: int | None = None
    """Hidden width of the projection of text states, None = the language model's width."""
    image_hidden: int | None = None
    """Hidden width of the projection of image features, None = the language model's width."""
    depth: int = 2
    """Layers of the two-way transformer."""
    heads: int = 8
    """Attention heads of the two-way transformer."""
    mlp: int = 2048
    """Hidden width of the two-way transformer's MLPs."""
    stem: tuple[int, int] = (768, 384)
    """Output channels of the upscaler's first two convolutions."""
    stages: tuple[int, int, int, int] = (768, 384, 384, 192)
    """Output channels of the upscaler's four doubling stages."""
    mask_channels: int = 16
    """Channels of the prompt encoder's mask branch, which is stored and never run."""
    weight: float = 1.0
    """Weight of the map losses in training."""

    def __post_init__(self) -> None:
        for name in ("width", "heads", "mlp", "mask_channels", "text_hidden", "image_hidden"):
            if (value := getattr(self, name)) is not None or not name.endswith("_hidden"):
                integer_field(f"heatmap_config.{name}", value, 1, 2**16)
        integer_field("heatmap_config.depth", self.depth, 1, 64)
        for name in ("stem", "stages"):
            integer_fields(f"heatmap_config.{name}", getattr(self, name), 1, 2**16, most=4)
        number_field("heatmap_config.weight", self.weight, -1e9, 1e9)
        # The two-way transformer halves the width for cross attention, then splits it into heads.
        if self.width % (2 * self.heads):
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
    """The config of a whole model."""

    text: Mapping[str, Any]
    """Arguments of transformers' config class of the language model."""
    vision: Mapping[str, Any]
    """Arguments of transformers' config class of the vision tower."""
    heatmap: HeatmapConfig
    """Dimensions of the heatmap head."""
    image_token_id: int
    """Holds the place of one merged visual token."""
    vision_start_token_id: int
    """Stands before the tokens of an image."""
    vision_end_token_id: int
    """Stands after the tokens of an image."""
    misalignment_token_id: int
    """The state that predicts this token prompts the misalignment heatmap."""
    artifact_token_id: int
    """The state that predicts this token prompts the artifact heatmap."""
    tied: bool
    """Whether the output matrix is the embedding itself."""
    raw: Mapping[str, Any] = field(repr=False)
    """The content of the config.json that this was read from."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ImageDoctorConfig:
        """Reads the flat or the nested form.

        Raises:
            CheckpointError: a dimension does not fit the others, or a key has a value that this
                code does not support.
        """
        nested = table_field("text_config", raw.get("text_config"))
        source = {**raw, **nested}
        text = {key: source.get(key, value) for key, value in TEXT_DEFAULTS.items()}
        text["rope_parameters"] = _rope_parameters(source)
        # The released file states a sliding_window and switches it off; no code here has one.
        if source.get("use_sliding_window"):
            raise CheckpointError(
                "use_sliding_window must be false, as in the released model; it is true."
            )
        stated = table_field("vision_config", raw.get("vision_config"))
        if "in_chans" in stated:  # the released file's name for it
            stated.setdefault("in_channels", stated["in_chans"])
        vision = {key: stated.get(key, value) for key, value in VISION_DEFAULTS.items()}
        vision["out_hidden_size"] = stated.get("out_hidden_size", text["hidden_size"])
        _check_sizes("", text)
        _check_sizes("vision_config.", vision)
        ids = {
            key: integer_field(key, raw.get(key, value), 0, 2**22)
            for key, value in TOKEN_ID_DEFAULTS.items()
        }
        tied = raw.get("tie_word_embeddings", nested.get("tie_word_embeddings", True))
        if not isinstance(tied, bool):
            raise CheckpointError(f"tie_word_embeddings must be true or false, got {tied!r}.")
        config = cls(
            text=text,
            vision=vision,
            heatmap=_heatmap_config(raw),
            **ids,
            tied=tied,
            raw=dict(raw),
        )
        config._check()
        return config

    @classmethod
    def from_folder(cls, folder: Path) -> ImageDoctorConfig:
        """Reads the config.json of a checkpoint folder.

        Raises:
            CheckpointError: the file is missing or not JSON, or its dimensions do not fit.
        """
        path = folder / "config.json"
        try:
            raw = read_json(folder, path.name)
        except FileNotFoundError:
            raise CheckpointError(f"A checkpoint needs a config.json; {path} is missing.") from None
        return cls.from_dict(raw)

    @property
    def layers(self) -> int:
        """Number of layers of the language model."""
        return int(self.text["num_hidden_layers"])

    @property
    def merged_patch_size(self) -> int:
        """Side of one merged visual token, in model pixels (28 in the official model)."""
        return int(self.vision["patch_size"] * self.vision["spatial_merge_size"])

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a reply."""
        eos = self.text["eos_token_id"]
        return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)

    def text_config(self) -> Qwen2_5_VLTextConfig:
        """Returns transformers' config of the language model."""
        from transformers import Qwen2_5_VLTextConfig

        arguments = {**self.text, "rope_parameters": dict(self.text["rope_parameters"])}
        return Qwen2_5_VLTextConfig(**arguments)

    def vision_config(self) -> Qwen2_5_VLVisionConfig:
        """Returns transformers' config of the vision tower."""
        from transformers import Qwen2_5_VLVisionConfig

        return Qwen2_5_VLVisionConfig(**self.vision)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content for config.json: as it was read, plus the heatmap head."""
        stated = asdict(self.heatmap)
        for name in ("text_hidden", "image_hidden"):
            stated[name] = stated[name] or self.text["hidden_size"]
        stated = {key: list(v) if isinstance(v, tuple) else v for key, v in stated.items()}
        return {**self.raw, "heatmap_weight": self.heatmap.weight, "heatmap_config": stated}

    def _check(self) -> None:
        text, vision = self.text, self.vision
        for width, heads, where in (
            (text["hidden_size"], text["num_attention_heads"], "num_attention_heads"),
            (text["num_attention_heads"], text["num_key_value_heads"], "num_key_value_heads"),
            (vision["hidden_size"], vision["num_heads"], "vision_config.num_heads"),
        ):
            if width % heads:
                raise CheckpointError(f"{where} must divide {width}, got {heads}.")
        head_dim = text["hidden_size"] // text["num_attention_heads"]
        section = text["rope_parameters"]["mrope_section"]
        if 2 * sum(section) != head_dim:
            raise CheckpointError(
                f"mrope_section must add up to half the head size {head_dim}, got {section}."
            )
        # The fused MLPs of the engine compute SiLU, whatever the config says.
        for part in (text, vision):
            if part["hidden_act"] != "silu":
                raise CheckpointError(f"hidden_act must be 'silu', got {part['hidden_act']!r}.")
        if vision["out_hidden_size"] != text["hidden_size"]:
            raise CheckpointError(
                "vision_config.out_hidden_size must equal hidden_size, got "
                f"{vision['out_hidden_size']} and {text['hidden_size']}."
            )
        for name in TOKEN_ID_DEFAULTS:
            if getattr(self, name) >= text["vocab_size"]:
                raise CheckpointError(
                    f"{name} must be below vocab_size {text['vocab_size']}, "
                    f"got {getattr(self, name)}."
                )


def _check_sizes(where: str, part: Mapping[str, Any]) -> None:
    """Raises CheckpointError at the first field whose type or size is impossible.

    Args:
        where: what to put before the name of a field.
        part: the fields of the language model or of the vision tower.
    """
    for name, value in part.items():
        if name in _RANGES:
            integer_field(where + name, value, *_RANGES[name])
        elif name in _FRACTIONS:
            number_field(where + name, value, 0, 1)
        elif name == "fullatt_block_indexes":
            integer_fields(where + name, value, 0, 1024, most=1024)
        elif name == "bos_token_id" and value is not None:
            integer_field(name, value, 0, part["vocab_size"] - 1)
        elif name == "eos_token_id":
            ids = value if isinstance(value, list | tuple) else [value]
            integer_fields(name, ids, 0, part["vocab_size"] - 1, most=1000)


def _rope_parameters(source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns today's `rope_parameters` from the keys of either generation."""
    stated = table_field(
        "rope_scaling", source.get("rope_parameters") or source.get("rope_scaling")
    )
    # Qwen's own files say "mrope", the released one "default"; `mrope_section` makes both M-RoPE.
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise CheckpointError(f"rope type must be 'default' or 'mrope', got {kind!r}.")
    theta = stated.get("rope_theta", source.get("rope_theta", DEFAULT_ROPE_THETA))
    section = stated.get("mrope_section", DEFAULT_MROPE_SECTION)
    number_field("rope_theta", theta, 1e-6, 1e30)
    return {
        "rope_type": "default",
        "rope_theta": theta,
        "mrope_section": list(integer_fields("mrope_section", section, 1, 2**16, most=3)),
    }


def _heatmap_config(raw: Mapping[str, Any]) -> HeatmapConfig:
    """Reads `heatmap_config`, and the weight that the released file states beside it."""
    stated = table_field("heatmap_config", raw.get("heatmap_config"))
    names = {f.name for f in fields(HeatmapConfig)}
    if unknown := sorted(set(stated) - names):
        raise CheckpointError(
            f"heatmap_config: unknown keys {unknown}; the known ones are {sorted(names)}."
        )
    weight = raw.get("heatmap_weight", 1.0)
    stated.setdefault("weight", number_field("heatmap_weight", weight, -1e9, 1e9))
    for name in ("stem", "stages"):
        if name in stated:
            name_in_file = f"heatmap_config.{name}"
            stated[name] = integer_fields(name_in_file, stated[name], 1, 2**16, most=64)
    return HeatmapConfig(**stated)
