"""How large the bundled verifier is and how it is trained: one dataclass each, two presets.

`cpu` is the interim model that two cores train in an hour; `gpu` is the one that ships. A
checkpoint's folder states its own dimensions, so these are read once, when a model starts
from nothing; training then goes by the folder, whichever model it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ROPE_THETA: Final = 10.0
"""M-RoPE gives columns the slowest frequencies. With the official 1e6 (or 1e4) and small heads
these do not turn at all over a few cells, and a model that starts from nothing cannot tell
left from right."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Dimensions of a model that starts from nothing.

    `input_size`: side of the square in pixels, a multiple of 28. `vision_*`: the tower.
    `depth`, `width`, `heads`, `kv_heads`, `mlp`: the language model. `head_*`, `stem`,
    `stages`: the heatmap heads (see `imagedoctor.config.HeatmapConfig`).
    """

    input_size: int
    vision_depth: int
    vision_width: int
    vision_heads: int
    vision_mlp: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    head_width: int
    head_mlp: int
    stem: tuple[int, int]
    stages: tuple[int, int, int, int]

    def config(self, ids: Mapping[str, int], vocabulary: int) -> dict[str, Any]:
        """Returns a config.json of the released, flat form.

        Args:
            ids: special token -> id.
            vocabulary: how many tokens there are, special ones included.
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
            "rope_theta": ROPE_THETA,
            "rope_scaling": {"mrope_section": self._section(), "rope_type": "default"},
            "vision_config": self._vision(),
            "heatmap_config": self._heads(),
        }

    def _section(self) -> list[int]:
        """Splits half a head as the official model does: 2 to 3 to 3."""
        half = self.width // self.heads // 2
        side = half * 3 // 8
        return [half - 2 * side, side, side]

    def _vision(self) -> dict[str, Any]:
        return {
            "depth": self.vision_depth,
            "hidden_size": self.vision_width,
            "intermediate_size": self.vision_mlp,
            "num_heads": self.vision_heads,
            "out_hidden_size": self.width,
            "window_size": self.input_size,
            "fullatt_block_indexes": list(range(self.vision_depth)),
        }

    def _heads(self) -> dict[str, Any]:
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
class Lengths:
    """Tokens that the rows of each kind are padded to; the few longer ones lose their end."""

    look: int
    text: int
    judge: int


@dataclass(frozen=True, slots=True)
class Training:
    """How a stage is trained.

    `batch`: pictures a step. `mapped`: how many of these teach the heatmaps, whose heads cost
    more than all the rest. `text_batch`: picture-less rows a step, 0 = none. `lengths`:
    None = pad rows to the longest of their batch (a graph of CUDA calls needs numbers).
    `learning_rate`, `judge_rate`: at their peak, the latter in stage `judge`. `reuse`: how often
    a row is learnt from, as making one costs more than a step with it. `ema`: decay of the
    averaged weights. `workers`: processes that make data beside the step, 0 = none. `easy`:
    how many rows of one object stage `look` starts with. `answer_only`: share of rows in that
    mode. `save_minutes`, `check_minutes`: how often.
    """

    batch: int
    mapped: int
    text_batch: int
    lengths: Lengths | None
    learning_rate: float
    judge_rate: float
    reuse: int
    ema: float
    workers: int
    easy: int
    answer_only: float = 0.15
    save_minutes: float = 2.0
    check_minutes: float = 5.0
    check_pictures: int = 64


@dataclass(frozen=True, slots=True)
class Preset:
    """Sizes of the model and the way it is trained."""

    sizes: Sizes
    training: Training


CONFIGS: Final = {
    "cpu": Preset(
        Sizes(
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
        Training(
            batch=16,
            mapped=16,
            text_batch=4,
            lengths=None,
            learning_rate=1.5e-3,
            judge_rate=1.5e-3,
            reuse=1,
            ema=0.995,
            workers=0,
            easy=6400,
        ),
    ),
    "gpu": Preset(
        Sizes(
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
        Training(
            batch=512,
            mapped=128,
            text_batch=512,
            lengths=Lengths(look=104, text=104, judge=176),
            learning_rate=1.2e-3,
            judge_rate=5e-4,
            reuse=4,
            ema=0.998,
            workers=14,
            easy=100_000,
            check_pictures=128,
        ),
    ),
}
