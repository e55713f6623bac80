"""The network: Qwen2.5-VL's vision tower and language model, and ImageDoctor's heatmap head.

It combines stock modules of transformers under the names of the released weights (`visual.*`,
`model.*`, `lm_head.*`, `text_hidden_fcs.*`, `image_hidden_fcs.*`, `prompt_encoder.*`,
`heatmap.*`), so its state dict is the official one. Source: modify/transformers/
modeling_qwen2_5_vl.py of ImageDoctor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)

from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model import heatmap_head, vision
from tts_verifier.verifiers.imagedoctor.model.mrope import rope_positions
from tts_verifier.verifiers.imagedoctor.model.vision import Grid

OFFICIAL_GRID = (18, 18)
"""(rows, columns) of merged tokens of a 512-pixel square."""


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """The results of one forward pass."""

    hidden: Tensor
    """(B, T, H), the language model's states after the final norm."""
    visual: Tensor
    """(merged tokens of all images, H), merged visual features, each image in raster order."""
    logits: Tensor
    """(B, T, vocabulary)."""


class ImageDoctorModel(nn.Module):
    """ImageDoctor, built from a config with random weights; differentiable throughout."""

    def __init__(self, config: ImageDoctorConfig) -> None:
        super().__init__()
        self.config = config
        hidden = int(config.text["hidden_size"])
        self.visual = Qwen2_5_VisionTransformerPretrainedModel(config.vision_config())
        self.model = Qwen2_5_VLTextModel(config.text_config())
        self.lm_head = nn.Linear(hidden, int(config.text["vocab_size"]), bias=False)
        self.attach_heads()
        # The stock modules initialise their own weights; this matrix is in none of them.
        nn.init.normal_(self.lm_head.weight, std=float(config.text["initializer_range"]))
        self.tie()

    def attach_heads(self) -> None:
        """Attaches fresh heatmap heads, of random weights, in the place of any that are there."""
        head, hidden = self.config.heatmap, int(self.config.text["hidden_size"])
        self.text_hidden_fcs = heatmap_head.build_projection(
            hidden, head.text_hidden or hidden, head.width
        )
        self.image_hidden_fcs = heatmap_head.build_projection(
            hidden, head.image_hidden or hidden, head.width
        )
        self.prompt_encoder = heatmap_head.build_prompt_encoder(head, OFFICIAL_GRID)
        self.heatmap = heatmap_head.MaskDecoder(head)

    def tie(self) -> None:
        """Makes the output matrix the embedding itself, if the config says so."""
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
        """Runs a teacher-forced batch of sequences with one image each.

        Args:
            input_ids: (B, T), int64.
            pixel_values: (patches of all images, 3 * 2 * patch^2), the processor's layout.
            image_grid_thw: (B, 3), (1, rows, columns) in patches. Lists of numbers avoid a
                copy from the device.
            attention_mask: (B, T), 0 at padding, on either side. None is fastest, and right if
                there is no padding, or padding on the right only, which causal attention does
                not see.
            position_ids: (3, B, T), M-RoPE positions, None = computed here.
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
        """Runs the vision tower; see `vision.features` for arguments and result."""
        return vision.features(self.visual, pixel_values, grids, blocks)

    def positions(
        self, ids: Tensor, grids: Sequence[Grid], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns M-RoPE positions (3, B, T) and each sequence's shift (B, 1).

        See `mrope.rope_positions`.
        """
        merge = int(self.config.vision["spatial_merge_size"])
        token = self.config.image_token_id
        return rope_positions(ids, grids, image_token=token, merge=merge, mask=mask)

    def embed(self, ids: Tensor, visual: Tensor) -> Tensor:
        """Embeds tokens, and puts image features in the places of image tokens.

        Args:
            ids: (B, T).
            visual: (merged tokens of all images, H).

        Returns:
            (B, T, H).
        """
        embedded: Tensor = self.model.embed_tokens(ids)
        # A scatter fills places in order, and needs no indices, which the host would wait for.
        image = (ids == self.config.image_token_id).unsqueeze(-1)
        return embedded.masked_scatter(image, visual.to(embedded.dtype))

    def language(
        self,
        embedded: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Runs the language model.

        Args:
            embedded: (B, T, H).
            position_ids: (3, B, T).
            mask: (B, T), 0 at padding; None = no padding.

        Returns:
            (B, T, H), the states after the final norm.
        """
        out = self.model(
            inputs_embeds=embedded,
            position_ids=position_ids,
            # A dict goes to the layers as it is, where None means causal attention. From a tensor
            # transformers makes the layers' masks first.
            attention_mask={"full_attention": None} if mask is None else mask,
            use_cache=False,
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def heatmap_logits(self, states: Tensor, visual: Tensor, grid: Grid) -> Tensor:
        """Decodes N heatmaps.

        Args:
            states: (N, H), the states that predict heatmap tokens.
            visual: (N, merged tokens, H), merged features of each state's image.
            grid: (rows, columns) of merged tokens.

        Returns:
            (N, 16 rows, 16 columns), before the sigmoid.
        """
        prompt = self.text_hidden_fcs[0](states)
        image = self.image_hidden_fcs[0](visual).transpose(1, 2).unflatten(2, grid)
        dense = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)  # type: ignore[union-attr, operator]
        position = heatmap_head.position_code(self.prompt_encoder, grid)
        return self.heatmap(image + dense, position, prompt)  # type: ignore[no-any-return]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves or casts the model, but keeps the rotary frequencies in float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # In bfloat16 the frequencies would blur positions, so they are computed anew. This hook
        # of nn.Module is the one place that `to`, `half`, `cuda` and all the others pass.
        rotary = self.model.rotary_emb
        device = rotary.inv_freq.device
        if device.type != "meta":
            theta = float(self.config.text["rope_parameters"]["rope_theta"])
            size = self.config.text["hidden_size"] // self.config.text["num_attention_heads"]
            step = torch.arange(0, size, 2, dtype=torch.float) / size
            rotary.inv_freq = (1.0 / theta**step).to(device)
        return self


def grids_of(image_grid_thw: Tensor | Sequence[Sequence[int]]) -> list[Grid]:
    """Returns each image's (rows, columns) in patches; a still image has one frame."""
    rows = image_grid_thw.tolist() if isinstance(image_grid_thw, Tensor) else image_grid_thw
    return [(int(h), int(w)) for _, h, w in rows]
