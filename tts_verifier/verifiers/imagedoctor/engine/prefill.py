"""Prefill: reads the images and prompts of new requests into free sequences."""

from __future__ import annotations

from collections.abc import Sequence

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

    Args:
        fused: the model.
        buffers: with capacity for every prompt and its reply.
        sequences: the free sequence that each request enters.
        requests: images and prompts.

    Returns:
        Each request's merged visual features, (merged tokens, H).
    """
    model, device = fused.model, buffers.length.device
    ids, real = _pad_prompts([request.ids for request in requests], device)
    grids = [request.grid for request in requests]
    features = _features(fused, requests, device)
    visual = torch.cat(features)
    at = to_device(torch.tensor(sequences), device)
    positions, shift = model.positions(ids, grids, real)
    # Images and rows are in the same order, so each row's image tokens get their own features.
    attention = PrefillAttention(buffers, at, fused.shape)
    rope = mrope(fused, positions)
    length = real.sum(1)
    ends = torch.arange(len(ids), device=device) * ids.shape[1] + length - 1
    x = model.embed(ids, visual)
    last = run_layers(fused, x, rope, attend=attention.attend, rows=ends)
    buffers.start(at, ids, last.to(device), length, shift[:, 0])
    return features


def _features(
    fused: FusedModel, requests: Sequence[GenerationRequest], device: torch.device
) -> tuple[Tensor, ...]:
    """Returns each request's merged visual features, (merged tokens, H).

    Requests that share the array of their patches, such as a group of samples, share features too.
    """
    model = fused.model
    merge = int(model.config.vision["spatial_merge_size"])
    pictures = {(id(request.patches), request.grid): request for request in requests}
    grids = [grid for _, grid in pictures]
    patches = [request.patches for request in pictures.values()]
    pixels = _upload_patches(patches, model.lm_head.weight.dtype, device)
    visual = model.visual_features(pixels, grids, fused.vision_blocks)
    parts = torch.split(visual, [h * w // merge**2 for h, w in grids])
    found = dict(zip(pictures, parts, strict=True))
    return tuple(found[id(request.patches), request.grid] for request in requests)


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


def _upload_patches(
    patches: Sequence[NDArray[np.float32]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Copies all images' patches to the device in the model's dtype, without waiting for it.

    From pinned memory they travel while the GPU still works on earlier prompts.
    """
    rows = [len(part) for part in patches]
    shape = (sum(rows), patches[0].shape[1])
    pixels = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    for place, part in zip(pixels.split(rows), patches, strict=True):
        place.copy_(torch.from_numpy(part))
    return pixels.to(device, non_blocking=True)
