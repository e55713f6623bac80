"""From a token's state and an image's features to a heatmap.

Written from the description of ImageDoctor's modules (modify/transformers/
modeling_qwen2_5_vl.py): a mask decoder like that of Segment Anything (Kirillov et al. 2023)
without the IoU token, prompted by a text embedding as in LISA (Lai et al. 2023), and an
upscaler by 16 with RMS norms over channels (RAHF, Liang et al. 2024). Module names are those
of the released weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from tts_verifier.verifiers.imagedoctor.model.config import HeatmapConfig
from tts_verifier.verifiers.imagedoctor.model.sam import PromptEncoder, TwoWayTransformer
from tts_verifier.verifiers.imagedoctor.ops.pointwise import use_triton

UPSCALE = 16
"""Heatmap pixels per merged visual token, a side."""
TINY = 1e-8
"""Added to mean squares over channels."""


def projection(width_in: int, hidden: int, width_out: int) -> nn.ModuleList:
    """Returns Linear, ReLU, Linear, Dropout(0) in a list of one, as the weights name them."""
    layers = nn.Sequential(
        nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out), nn.Dropout(0.0)
    )
    return nn.ModuleList([layers])


def prompt_encoder(config: HeatmapConfig, grid: tuple[int, int]) -> nn.Module:
    """Returns Segment Anything's prompt encoder, of which only two parts are used."""
    return PromptEncoder(
        embed_dim=config.width,
        image_embedding_size=grid,
        input_image_size=(512, 512),
        mask_in_chans=config.mask_channels,
    )


def dense_position(encoder: nn.Module, grid: tuple[int, int]) -> Tensor:
    """Returns the random Fourier code of every cell's centre, (1, width, h, w).

    Computed in the dtype of the stored matrix, as LISA's fork does and Segment Anything
    does not.
    """
    layer = cast(nn.Module, encoder.pe_layer)
    matrix = cast(Tensor, layer.positional_encoding_gaussian_matrix)
    h, w = grid
    y = (torch.arange(h, device=matrix.device, dtype=matrix.dtype) + 0.5) / h
    x = (torch.arange(w, device=matrix.device, dtype=matrix.dtype) + 0.5) / w
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    code = cast(Tensor, layer._pe_encoding(torch.stack([columns, rows], dim=-1)))  # type: ignore[operator]
    return code.permute(2, 0, 1).unsqueeze(0)


class ChannelNorm(nn.Module):
    """Divides by the root mean square over channels: no mean, no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + TINY) * self.scale


def _conv(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel_size=3, padding=1)


def _double(width_in: int, width_out: int) -> nn.Sequential:
    grow = nn.ConvTranspose2d(
        width_in, width_out, kernel_size=3, stride=2, padding=1, output_padding=1
    )
    return nn.Sequential(grow, ChannelNorm(width_out), nn.ReLU())


def _residual(width: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(width, width), ChannelNorm(width), nn.ReLU(), _conv(width, width), ChannelNorm(width)
    )


class Upscaler(nn.Module):
    """(N, width, h, w) -> (N, stages[-1], 16h, 16w)."""

    def __init__(self, config: HeatmapConfig) -> None:
        super().__init__()
        first, second = config.stem
        self.conv_layers = nn.Sequential(
            *(_conv(config.width, first), nn.ReLU(), ChannelNorm(first)),
            *(_conv(first, second), nn.ReLU(), ChannelNorm(second)),
        )
        widths = (second, *config.stages)
        self.deconv_layers = nn.ModuleList(map(_double, widths[:-1], widths[1:]))
        self.conv_layers2 = nn.ModuleList(map(_residual, config.stages))
        self.last_conv1 = _conv(config.stages[-1], config.stages[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Doubles the sides four times, each followed by a residual block."""
        stem = self.conv_layers
        x = _normed(stem[3], stem[5], _normed(stem[0], stem[2], x, early=True), early=True)
        stages = zip(self.deconv_layers, self.conv_layers2, strict=True)
        for grow, refine in cast(Iterable[tuple[nn.Sequential, nn.Sequential]], stages):
            x = _normed(grow[0], grow[1], x)
            x = _normed(refine[3], refine[4], _normed(refine[0], refine[1], x), add=x)
        return torch.relu(self.last_conv1(x))


def _normed(
    conv: nn.Module, norm: nn.Module, x: Tensor, *, add: Tensor | None = None, early: bool = False
) -> Tensor:
    """Convolution, norm over channels, sum; a ReLU before the norm if `early`, else at the end."""
    if use_triton(x):
        from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

        bias, scale = cast(Tensor, conv.bias), cast(Tensor, norm.scale)
        out = _unbiased(conv, x)
        return pointwise_kernels.triton_channel_norm(
            out, bias, scale, add=add, early=early, eps=TINY
        )
    if early:
        return cast(Tensor, norm(torch.relu(conv(x))))
    x = norm(conv(x))
    return torch.relu(x if add is None else x + add)


def _unbiased(conv: nn.Module, x: Tensor) -> Tensor:
    """Convolves without the bias, which torch would add in a pass of its own."""
    weight = cast(Tensor, conv.weight)
    if isinstance(conv, nn.ConvTranspose2d):
        return conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
    return conv2d(x, weight, padding=1)


class Hypernetwork(nn.Module):
    """Three linear layers with ReLU between: the mask token's output -> weights per channel."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) -> (N, out)."""
        x = torch.relu(self.layers[0](x))
        x = torch.relu(self.layers[1](x))
        return cast(Tensor, self.layers[2](x))


class MaskDecoder(nn.Module):
    """One text prompt and one image embedding -> one map of logits."""

    def __init__(self, config: HeatmapConfig) -> None:
        super().__init__()
        self.mask_tokens = nn.Embedding(1, config.width)
        self.transformer = TwoWayTransformer(
            depth=config.depth,
            embedding_dim=config.width,
            num_heads=config.heads,
            mlp_dim=config.mlp,
        )
        self.output_upscaling = Upscaler(config)
        self.output_hypernetworks_mlps = nn.ModuleList(
            [Hypernetwork(config.width, config.stages[-1])]
        )

    def forward(self, image: Tensor, position: Tensor, prompt: Tensor) -> Tensor:
        """Decodes N prompts, each on its own image.

        Args:
            image: (N, width, h, w), the dense prompt already added.
            position: (1, width, h, w).
            prompt: (N, width).

        Returns:
            Logits, (N, 16h, 16w).
        """
        count, width, h, w = image.shape
        tokens = torch.stack([self.mask_tokens.weight.expand(count, -1), prompt], dim=1)
        tokens, cells = self.transformer(image, position.expand(count, -1, -1, -1), tokens)
        upscaled = self.output_upscaling(cells.transpose(1, 2).reshape(count, width, h, w))
        weights = self.output_hypernetworks_mlps[0](tokens[:, 0])
        logits = torch.bmm(weights.unsqueeze(1), upscaled.flatten(2))
        return logits.view(count, UPSCALE * h, UPSCALE * w)
