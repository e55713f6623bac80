"""The network: Qwen2.5-VL's vision tower and language model, and ImageDoctor's heads.

Stock modules of transformers are put together under the names of the released weights
(`visual.*`, `model.*`, `lm_head.*`, `text_hidden_fcs.*`, `image_hidden_fcs.*`,
`prompt_encoder.*`, `heatmap.*`), so that its state dict is the official one. Source:
modify/transformers/modeling_qwen2_5_vl.py of ImageDoctor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)

from tts_verifier.verifiers.imagedoctor.checkpoint import weights
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model import heatmap_head, vision
from tts_verifier.verifiers.imagedoctor.model.mrope import rope_positions
from tts_verifier.verifiers.imagedoctor.model.vision import Grid

OFFICIAL_GRID = (18, 18)


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What one forward pass gives.

    `hidden`: (B, T, H), the language model's states after the final norm. `visual`: (cells
    of all images, H), merged features in raster order. `logits`: (B, T, vocabulary).
    """

    hidden: Tensor
    visual: Tensor
    logits: Tensor


class ImageDoctorModel(nn.Module):
    """Built from a config with random weights; differentiable throughout."""

    def __init__(self, config: ImageDoctorConfig) -> None:
        super().__init__()
        self.config = config
        head, hidden = config.heads, int(config.text["hidden_size"])
        self.visual = Qwen2_5_VisionTransformerPretrainedModel(config.vision_config())
        self.model = Qwen2_5_VLTextModel(config.text_config())
        self.lm_head = nn.Linear(hidden, int(config.text["vocab_size"]), bias=False)
        self.text_hidden_fcs = heatmap_head.projection(
            hidden, head.text_hidden or hidden, head.width
        )
        self.image_hidden_fcs = heatmap_head.projection(
            hidden, head.image_hidden or hidden, head.width
        )
        self.prompt_encoder = heatmap_head.prompt_encoder(head, OFFICIAL_GRID)
        self.heatmap = heatmap_head.MaskDecoder(head)
        nn.init.normal_(self.lm_head.weight, std=float(config.text["initializer_range"]))
        self.tie()

    def tie(self) -> None:
        """Makes the output matrix the embedding itself, where the config says so."""
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        image_grid_thw: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
    ) -> Outputs:
        """Runs a batch of rows with one image each, teacher-forced.

        Args:
            input_ids: (B, T), int64.
            pixel_values: (patches of all images, 3 * 2 * patch^2), the processor's layout.
            image_grid_thw: (B, 3), (1, rows, columns) in patches; lists of numbers avoid a
                copy from the device.
            attention_mask: (B, T), 0 at padding on either side. None when there is none, or
                only on the right, where causal attention does not see it: the fastest way.
            position_ids: (3, B, T), None = computed here.
        """
        grids = grids_of(image_grid_thw)
        visual = self.visual_features(pixel_values, grids)
        if position_ids is None:
            position_ids, _ = self.positions(input_ids, grids, attention_mask)
        hidden = self.language(self.embed(input_ids, visual), position_ids, attention_mask)
        return Outputs(hidden, visual, self.lm_head(hidden))

    def visual_features(
        self,
        pixel_values: Tensor,
        grids: Sequence[Grid],
        blocks: Sequence[vision.Block] | None = None,
    ) -> Tensor:
        """Returns merged features (cells of all images, H), each image in raster order;
        `blocks`: see `vision.features`."""
        return vision.features(self.visual, pixel_values, grids, blocks)

    def positions(
        self, ids: Tensor, grids: Sequence[Grid], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns M-RoPE positions (3, B, T) and each row's shift (B, 1)."""
        merge = int(self.config.vision["spatial_merge_size"])
        token = self.config.image_token_id
        return rope_positions(ids, grids, image_token=token, merge=merge, mask=mask)

    def embed(self, ids: Tensor, visual: Tensor) -> Tensor:
        """Returns embeddings (B, T, H) with image features in the image tokens' places."""
        embedded: Tensor = self.model.embed_tokens(ids)
        image = (ids == self.config.image_token_id).unsqueeze(-1)
        return embedded.masked_scatter(image, visual.to(embedded.dtype))

    def language(
        self,
        embedded: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
        *,
        cache: Any = None,
    ) -> Tensor:
        """Runs the language model: states (B, T, H) after the final norm.

        `mask`: (B, past + T) with 0 at padding, or a bool (B, 1, T, past + T) of what may
        be attended to, or None: causal.
        """
        whole = mask is None or mask.dim() == 4
        out = self.model(
            inputs_embeds=embedded,
            position_ids=position_ids,
            attention_mask={"full_attention": mask} if whole else mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def heatmap_logits(self, states: Tensor, visual: Tensor, grid: Grid) -> Tensor:
        """Decodes N maps.

        Args:
            states: (N, H), the state that predicts a heatmap token.
            visual: (N, cells, H), merged features of that prompt's image.
            grid: (rows, columns) of merged cells.

        Returns:
            (N, 16 rows, 16 columns), before the sigmoid.
        """
        prompt = self.text_hidden_fcs[0](states)
        image = self.image_hidden_fcs[0](visual).transpose(1, 2).unflatten(2, grid)
        dense = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)  # type: ignore[union-attr, operator]
        position = heatmap_head.dense_position(self.prompt_encoder, grid)
        return self.heatmap(image + dense, position, prompt)  # type: ignore[no-any-return]

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        shard_bytes: int = weights.SHARD_BYTES,
    ) -> None:
        """Writes config.json and safetensors shards under the official names.

        Args:
            folder: made if absent; tokenizer and preprocessor files are the caller's.
            dtype: to store in, None = as it is.
            shard_bytes: a shard's largest size; a larger tensor gets a shard of its own.
        """
        state = weights.to_save(self.state_dict(), tied=self.config.tied)
        weights.write_config(Path(folder), self.config, dtype)
        weights.write(Path(folder), state, dtype=dtype, shard_bytes=shard_bytes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves or casts, but keeps rotary frequencies in float32: bf16 would blur positions."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        rotary = self.model.rotary_emb
        device = rotary.inv_freq.device
        if device.type != "meta":
            theta = float(self.config.text["rope_parameters"]["rope_theta"])
            size = self.config.text["hidden_size"] // self.config.text["num_attention_heads"]
            step = torch.arange(0, size, 2, dtype=torch.float) / size
            rotary.inv_freq = (1.0 / theta**step).to(device)
        return self


def grids_of(image_grid_thw: Tensor | Sequence[Sequence[int]]) -> list[Grid]:
    """Returns (rows, columns) in patches of each image; a still image has time 1."""
    rows = image_grid_thw.tolist() if isinstance(image_grid_thw, Tensor) else image_grid_thw
    return [(int(h), int(w)) for _, h, w in rows]
