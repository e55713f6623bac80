"""The heatmap head: from a token's state and an image's features to a heatmap.

Written from the description of ImageDoctor's modules (modify/transformers/
modeling_qwen2_5_vl.py): a mask decoder like Segment Anything's (Kirillov et al. 2023) without
the IoU token, prompted by a text embedding as in LISA (Lai et al. 2023), and an upscaler by 16
with RMS norms over channels (RAHF, Liang et al. 2024). The modules have the names that the
released weights use.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from tts_verifier.verifiers.imagedoctor.config import HeatmapConfig
from tts_verifier.verifiers.imagedoctor.model.sam import PromptEncoder, TwoWayTransformer
from tts_verifier.verifiers.imagedoctor.ops.pointwise import use_triton

UPSCALE = 16
"""Heatmap pixels along a side of one merged visual token."""
NORM_EPS = 1e-8
"""Added to the mean square over channels."""


def build_projection(width_in: int, hidden: int, width_out: int) -> nn.ModuleList:
    """Builds a projection: Linear, ReLU, Linear, in a list of one, as the weights name it."""
    # The dropout does nothing and has no weights; the official module has it.
    layers = nn.Sequential(
        nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out), nn.Dropout(0.0)
    )
    return nn.ModuleList([layers])


def build_prompt_encoder(config: HeatmapConfig, grid: tuple[int, int]) -> nn.Module:
    """Builds Segment Anything's prompt encoder; only two of its parts are used.

    Args:
        config: gives the widths.
        grid: (rows, columns) of the image embedding; no weight depends on it.
    """
    return PromptEncoder(
        embed_dim=config.width,
        image_embedding_size=grid,
        input_image_size=(512, 512),
        mask_in_chans=config.mask_channels,
    )


def position_code(encoder: nn.Module, grid: tuple[int, int]) -> Tensor:
    """Computes the random Fourier code of the centre of each grid cell.

    The code is computed in the dtype of the stored matrix, as LISA's fork does and Segment
    Anything does not.

    Args:
        encoder: the prompt encoder, which holds the matrix.
        grid: (rows, columns) of merged tokens.

    Returns:
        (1, width, rows, columns).
    """
    layer = cast(nn.Module, encoder.pe_layer)
    matrix = cast(Tensor, layer.positional_encoding_gaussian_matrix)
    h, w = grid
    y = (torch.arange(h, device=matrix.device, dtype=matrix.dtype) + 0.5) / h
    x = (torch.arange(w, device=matrix.device, dtype=matrix.dtype) + 0.5) / w
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    # x before y: Segment Anything's order of coordinates.
    code = cast(Tensor, layer._pe_encoding(torch.stack([columns, rows], dim=-1)))  # type: ignore[operator]
    return code.permute(2, 0, 1).unsqueeze(0)


class ChannelNorm(nn.Module):
    """Divides by the root mean square over channels; subtracts no mean and adds no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + NORM_EPS) * self.scale


def _conv3x3(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel_size=3, padding=1)


def _conv_relu_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Convolution, ReLU, norm over channels."""
    if use_triton(x):
        return _fused_norm(conv, norm, x, relu_first=True)
    return cast(Tensor, norm(torch.relu(conv(x))))


def _conv_norm_relu(
    conv: nn.Module, norm: nn.Module, x: Tensor, *, add: Tensor | None = None
) -> Tensor:
    """Convolution, norm over channels, sum with `add` if there is one, ReLU."""
    if use_triton(x):
        return _fused_norm(conv, norm, x, add=add)
    x = norm(conv(x))
    return torch.relu(x if add is None else x + add)


def _fused_norm(
    conv: nn.Module,
    norm: nn.Module,
    x: Tensor,
    *,
    add: Tensor | None = None,
    relu_first: bool = False,
) -> Tensor:
    """Convolves, then does all the rest in one kernel, the convolution's bias included."""
    # Imported here, because triton exists on GPU machines only.
    from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

    bias, scale = cast(Tensor, conv.bias), cast(Tensor, norm.scale)
    out = _convolve_without_bias(conv, x)
    return pointwise_kernels.triton_channel_norm(
        out, bias, scale, add=add, relu_first=relu_first, eps=NORM_EPS
    )


def _convolve_without_bias(conv: nn.Module, x: Tensor) -> Tensor:
    """Convolves without the bias, which torch would add in a pass of its own."""
    weight = cast(Tensor, conv.weight)
    if isinstance(conv, nn.ConvTranspose2d):
        return conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
    return conv2d(x, weight, padding=1)


# The released weights name the layers of the upscaler by their places in a Sequential
# ("conv_layers.3.weight"). The three classes below keep these places and give them names.


class UpscalerStem(nn.Sequential):
    """Two convolutions, each followed by a ReLU and a norm."""

    def __init__(self, width_in: int, first: int, second: int) -> None:
        super().__init__(
            *(_conv3x3(width_in, first), nn.ReLU(), ChannelNorm(first)),
            *(_conv3x3(first, second), nn.ReLU(), ChannelNorm(second)),
        )

    conv1 = property(lambda self: self[0])
    norm1 = property(lambda self: self[2])
    conv2 = property(lambda self: self[3])
    norm2 = property(lambda self: self[5])

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, h, w) -> (N, second, h, w)."""
        x = _conv_relu_norm(self.conv1, self.norm1, x)
        return _conv_relu_norm(self.conv2, self.norm2, x)


class DoublingStage(nn.Sequential):
    """A transposed convolution that doubles the sides, a norm, and a ReLU."""

    def __init__(self, width_in: int, width_out: int) -> None:
        # Without the output padding a side of n would become 2 n - 1.
        conv = nn.ConvTranspose2d(
            width_in, width_out, kernel_size=3, stride=2, padding=1, output_padding=1
        )
        super().__init__(conv, ChannelNorm(width_out), nn.ReLU())

    conv = property(lambda self: self[0])
    norm = property(lambda self: self[1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, 2h, 2w)."""
        return _conv_norm_relu(self.conv, self.norm, x)


class UpscalerResidual(nn.Sequential):
    """Two convolutions with norms; the input is added before the last ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__(
            *(_conv3x3(width, width), ChannelNorm(width), nn.ReLU()),
            *(_conv3x3(width, width), ChannelNorm(width)),
        )

    conv1 = property(lambda self: self[0])
    norm1 = property(lambda self: self[1])
    conv2 = property(lambda self: self[3])
    norm2 = property(lambda self: self[4])

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, h, w) -> the same."""
        inner = _conv_norm_relu(self.conv1, self.norm1, x)
        return _conv_norm_relu(self.conv2, self.norm2, inner, add=x)


def _weigh_channels(conv: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """Convolution, ReLU, sum over channels with weights (N, C) -> (N, h, w)."""
    if use_triton(x):
        from tts_verifier.verifiers.imagedoctor.ops import pointwise_kernels

        out = _convolve_without_bias(conv, x)
        return pointwise_kernels.triton_weigh_channels(out, cast(Tensor, conv.bias), weights)
    out = torch.relu(conv(x))
    return torch.bmm(weights.unsqueeze(1), out.flatten(2)).view(len(x), *x.shape[2:])


class Upscaler(nn.Module):
    """Upscales by 16, and weighs the channels of the result."""

    def __init__(self, config: HeatmapConfig) -> None:
        super().__init__()
        first, second = config.stem
        widths = (second, *config.stages)
        self.conv_layers = UpscalerStem(config.width, first, second)
        self.deconv_layers = nn.ModuleList(map(DoublingStage, widths[:-1], widths[1:]))
        self.conv_layers2 = nn.ModuleList(map(UpscalerResidual, config.stages))
        self.last_conv1 = _conv3x3(config.stages[-1], config.stages[-1])

    def forward(self, x: Tensor, channel_weights: Tensor) -> Tensor:
        """(N, width, h, w) and (N, stages[-1]) -> (N, 16h, 16w)."""
        x = self.conv_layers(x)
        # Doubles the sides four times, each time followed by a residual block.
        for double, refine in zip(self.deconv_layers, self.conv_layers2, strict=True):
            x = refine(double(x))
        # RAHF's last convolution is absent: the mask token's output weighs the channels instead.
        return _weigh_channels(self.last_conv1, x, channel_weights)


class Hypernetwork(nn.Module):
    """Three linear layers with ReLUs: the mask token's output -> a weight for each channel."""

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
    """Decodes one map of logits from a text prompt and an image embedding."""

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
            image: (N, width, h, w), image embeddings with the dense prompt added.
            position: (1, width, h, w), the position code.
            prompt: (N, width), text prompts.

        Returns:
            Logits, (N, 16h, 16w).
        """
        count, width, h, w = image.shape
        # Concatenate the mask token and the prompt
        mask_token = self.mask_tokens.weight.expand(count, -1)
        tokens = torch.stack([mask_token, prompt], dim=1)
        # Run the transformer
        tokens, image = self.transformer(image, position.expand(count, -1, -1, -1), tokens)
        # Upscale the image embedding; the mask token gives the weight of each channel
        image = image.transpose(1, 2).reshape(count, width, h, w)
        channel_weights = self.output_hypernetworks_mlps[0](tokens[:, 0])
        return cast(Tensor, self.output_upscaling(image, channel_weights))
