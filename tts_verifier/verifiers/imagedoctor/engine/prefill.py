"""Prefill: reads the images and prompts of new requests into free sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.engine.attention import PrefillAttention
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import SequenceBuffers
from tts_verifier.verifiers.imagedoctor.engine.layers import FusedModel, mrope, run_layers
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device
from tts_verifier.verifiers.imagedoctor.requests import GenerationRequest


def prefill(
    fused: FusedModel,
    buffers: SequenceBuffers,
    sequences: Sequence[int],
    requests: Sequence[GenerationRequest],
) -> tuple[Tensor, ...]:
    """Runs vision tower and language model over prompts, and starts their replies.

    Several replies to one prompt, as policy gradients need them, cost one prefill.

    Args:
        fused: the model.
        buffers: with capacity for every prompt and its reply.
        sequences: the free sequence that each request enters.
        requests: images and prompts.

    Returns:
        Each request's merged visual features, (merged tokens, H).
    """
    model, device = fused.model, buffers.length.device
    vision = model.config.vision
    first, which = _distinct_prompts(requests)
    distinct = [requests[i] for i in first]
    ids, real = _pad_prompts([request.ids for request in distinct], device)
    grids = [request.grid for request in distinct]
    dtype = model.lm_head.weight.dtype
    pixels = _upload_pixels(distinct, dtype, device, int(vision["temporal_patch_size"]))
    visual = model.visual_features(pixels, grids, fused.vision_blocks)
    at = to_device(torch.tensor([sequences[i] for i in first]), device)
    positions, shift = model.positions(ids, grids, real)
    # Images and rows are in the same order, so each row's image tokens get their own features.
    attention = PrefillAttention(buffers, at, fused.shape)
    rope = mrope(fused, positions)
    length = real.sum(1)
    ends = torch.arange(len(ids), device=device) * ids.shape[1] + length - 1
    x = model.embed(ids, visual)
    last = run_layers(fused, x, rope, attend=attention.attend, rows=ends).to(device)
    merge = int(vision["spatial_merge_size"])
    features = torch.split(visual, [h * w // merge**2 for h, w in grids])
    if len(distinct) == len(requests):
        buffers.start(at, ids, last, length, shift[:, 0])
        return features
    everyone, rows = to_device(torch.tensor([list(sequences), which]), device)
    buffers.copy_prompts(at[rows], everyone, ids.shape[1])
    buffers.start(everyone, ids[rows], last[rows], length[rows], shift[rows, 0])
    return tuple(features[i] for i in which)


def _distinct_prompts(requests: Sequence[GenerationRequest]) -> tuple[list[int], list[int]]:
    """Returns the first request of each prompt, and for each request the number of its prompt."""
    numbers: dict[object, int] = {}
    which = [numbers.setdefault(request.prompt_key, len(numbers)) for request in requests]
    return [which.index(number) for number in range(len(numbers))], which


def _pad_prompts(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the ids (N, T), padded on the right, and which of them are real, bool (N, T).

    Padding repeats each prompt's first token. It then marks no further token as used, which the
    repetition penalty would count.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[prompt[0]] * (longest - len(prompt))] for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    real = torch.arange(longest) < lengths[:, None]
    return to_device(ids, device), to_device(real, device)


def _upload_pixels(
    requests: Sequence[GenerationRequest], dtype: torch.dtype, device: torch.device, frames: int
) -> Tensor:
    """Returns all images' patches on the device, in the model's dtype: (patches, values)."""
    parts: list[Tensor] = []
    for _, group in groupby(requests, key=lambda request: id(request.level_values)):
        alike = list(group)
        patches, values = [request.patches for request in alike], alike[0].level_values
        if values is None:
            parts.append(_upload(patches, dtype, device))
            continue
        table = to_device(torch.from_numpy(values).to(dtype), device)
        parts.append(_look_up(_upload(patches, torch.uint8, device), table, frames))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _look_up(levels: Tensor, values: Tensor, frames: int) -> Tensor:
    """uint8 (patches, 3 * area), (3, 256) -> (patches, 3 * frames * area), equal frames."""
    by_channel = levels.unflatten(1, (3, -1)).int()
    rows = torch.arange(3, dtype=torch.int32, device=levels.device)[:, None] * values.shape[1]
    found = values.flatten().index_select(0, (by_channel + rows).flatten()).view(by_channel.shape)
    return found[:, :, None].expand(-1, -1, frames, -1).reshape(len(levels), -1)


def _upload(
    patches: Sequence[NDArray[np.generic]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Copies all images' patches to the device as `dtype`, without waiting for it.

    From pinned memory and on a stream of their own they travel while the GPU still works on
    earlier prompts.
    """
    rows = [len(part) for part in patches]
    shape = (sum(rows), patches[0].shape[1])
    pixels = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    for place, part in zip(pixels.split(rows), patches, strict=True):
        place.copy_(torch.from_numpy(part))
    if device.type != "cuda":
        return pixels.to(device)
    stream, used_on = _upload_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        uploaded = pixels.to(device, non_blocking=True)
    used_on.wait_stream(stream)
    # The allocator may give the memory to the next upload only when this stream is done with it.
    uploaded.record_stream(used_on)
    return uploaded


@lru_cache
def _upload_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
