"""Two presets of the bundled verifier: its dimensions and how it is trained.

`cpu` is an interim model that two cores train in an hour; `gpu` is the one that ships. A
checkpoint's folder states its own dimensions, so the sizes here only matter for a model that
starts from random weights. Training works on whatever model the folder holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MINIATURE_ROPE_THETA: Final = 10.0
"""Base of the rotary frequencies.

M-RoPE gives columns the slowest frequencies. With the official base of 1e6 (or with 1e4) and small
heads, these hardly rotate over a few cells, and a model that starts from random weights cannot tell
left from right.
"""


@dataclass(frozen=True, slots=True)
class VerifierSizes:
    """Dimensions of a model that starts from random weights."""

    input_size: int
    """Side of the square input in pixels, a multiple of 28."""
    vision_depth: int
    """Blocks of the vision tower."""
    vision_width: int
    """Channels of the vision tower."""
    vision_heads: int
    """Attention heads of the vision tower."""
    vision_mlp: int
    """Hidden width of the vision tower's MLPs."""
    depth: int
    """Layers of the language model."""
    width: int
    """Channels of the language model."""
    heads: int
    """Query heads of the language model."""
    kv_heads: int
    """Key and value heads of the language model."""
    mlp: int
    """Hidden width of the language model's MLPs."""
    head_width: int
    """Channels of the heatmap heads."""
    head_mlp: int
    """Hidden width of the heatmap heads' MLPs."""
    stem: tuple[int, int]
    """Channels of the heatmap heads' stem, see `imagedoctor.model.config.HeatmapConfig`."""
    stages: tuple[int, int, int, int]
    """Channels of the heatmap heads' upscaling stages, see `HeatmapConfig` too."""

    def config_json(self, ids: Mapping[str, int], vocabulary: int) -> dict[str, Any]:
        """Returns the content of a config.json of the released, flat form.

        Args:
            ids: special token -> id.
            vocabulary: number of tokens, special ones included.
        """
        return {
            "architectures": ["ImageDoctorForConditionalGeneration"],
            "model_type": "ImageDoctor",
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "misalignment_token_id": ids["<|misalignment|>"],
            "artifact_token_id": ids["<|artifact|>"],
            "heatmap_weight": 1.0,
            "tie_word_embeddings": True,
            "vocab_size": vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
            "rope_theta": MINIATURE_ROPE_THETA,
            "rope_scaling": {"mrope_section": self._mrope_section(), "rope_type": "default"},
            "vision_config": self._vision_config(),
            "heatmap_config": self._heatmap_config(),
        }

    def _mrope_section(self) -> list[int]:
        """Splits half a head between time, rows and columns, 2 to 3 to 3 as officially."""
        half = self.width // self.heads // 2
        side = half * 3 // 8
        return [half - 2 * side, side, side]

    def _vision_config(self) -> dict[str, Any]:
        # Every block attends to the whole image, and a window of its size leaves the patches in
        # their order.
        return {
            "depth": self.vision_depth,
            "hidden_size": self.vision_width,
            "intermediate_size": self.vision_mlp,
            "num_heads": self.vision_heads,
            "out_hidden_size": self.width,
            "window_size": self.input_size,
            "fullatt_block_indexes": list(range(self.vision_depth)),
        }

    def _heatmap_config(self) -> dict[str, Any]:
        return {
            "width": self.head_width,
            "text_hidden": self.width,
            "image_hidden": self.width,
            "heads": 4,
            "mlp": self.head_mlp,
            "stem": list(self.stem),
            "stages": list(self.stages),
        }


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Number of tokens that rows are padded to, by kind; the few longer rows lose their end."""

    perception: int
    """Of rows of the perception stage."""
    text: int
    """Of rows without an image."""
    cold_start: int
    """Of rows of the cold start."""


@dataclass(frozen=True, slots=True)
class VerifierTraining:
    """How a stage is trained."""

    batch: int
    """Images a step."""
    heatmap_rows: int
    """Images of a step that train the heatmaps; few, as their heads cost more than all the rest."""
    text_batch: int
    """Rows without an image a step; 0 = none."""
    lengths: RowLengths | None
    """Fixed lengths of rows, which a CUDA graph needs; None = the longest row of the batch."""
    learning_rate: float
    """Peak learning rate of the perception stage."""
    cold_start_learning_rate: float
    """Peak learning rate of the cold start."""
    reuse: int
    """How often a row is used; making a row costs more than a step with it."""
    ema_decay: float
    """Decay of the averaged weights."""
    workers: int
    """Processes that make data beside the step; 0 = none."""
    single_object_rows: int
    """Number of rows with a single object that the perception stage starts with."""
    answer_only_share: float = 0.15
    """Share of cold-start rows in answer-only mode."""
    answer_weight: float = 0.0
    """Weight of the answers without reasons as a loss of their own, and of its probe.

    Among all tokens of a batch the few digits of such rows hardly count.
    """
    print_seconds: float = 30.0
    """How often the mean losses are printed."""
    save_minutes: float = 2.0
    """How often a checkpoint is written."""
    check_minutes: float = 5.0
    """How often the model is checked on held-out images."""
    check_images: int = 64
    """Number of these images."""


@dataclass(frozen=True, slots=True)
class VerifierPreset:
    """A verifier and its training."""

    sizes: VerifierSizes
    """Its dimensions."""
    training: VerifierTraining
    """How it is trained."""


VERIFIER_PRESETS: Final = {
    "cpu": VerifierPreset(
        VerifierSizes(
            input_size=112,
            vision_depth=4,
            vision_width=128,
            vision_heads=4,
            vision_mlp=320,
            depth=4,
            width=128,
            heads=4,
            kv_heads=4,
            mlp=384,
            head_width=64,
            head_mlp=128,
            stem=(64, 48),
            stages=(48, 32, 16, 8),
        ),
        VerifierTraining(
            batch=16,
            heatmap_rows=16,
            text_batch=4,
            lengths=None,
            learning_rate=1.5e-3,
            cold_start_learning_rate=1.5e-3,
            reuse=1,
            ema_decay=0.995,
            workers=0,
            single_object_rows=6400,
        ),
    ),
    "gpu": VerifierPreset(
        VerifierSizes(
            input_size=196,
            vision_depth=5,
            vision_width=192,
            vision_heads=6,
            vision_mlp=512,
            depth=6,
            width=256,
            heads=8,
            kv_heads=8,
            mlp=688,
            head_width=128,
            head_mlp=256,
            stem=(128, 96),
            stages=(96, 64, 32, 16),
        ),
        VerifierTraining(
            batch=512,
            heatmap_rows=128,
            text_batch=512,
            lengths=RowLengths(perception=104, text=104, cold_start=176),
            learning_rate=1.2e-3,
            cold_start_learning_rate=5e-4,
            reuse=4,
            ema_decay=0.998,
            workers=14,
            single_object_rows=100_000,
            check_images=128,
        ),
    ),
}
