"""The options with which users load an ImageDoctor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch


class ImageDoctorOptions(TypedDict, total=False):
    """How to load and run an ImageDoctor; every key may be absent."""

    revision: str | None
    """Branch, tag or commit of a hub id."""
    local_files_only: bool
    """Look for a hub id in the cache only."""
    dtype: torch.dtype | str | None
    """The dtype to compute in, None = bfloat16 on a GPU, float32 on a CPU."""
    precision: Literal["fp8"] | None
    """"fp8" rounds the weights of the language model and the vision tower to 8 bits after loading,
    so they take about half the memory. On an H100 it verifies 1.3 to 1.5 times as many images per
    second. GPUs older than Ada are refused, and a CPU is slow. None = `dtype`."""
    device: torch.device | str | Sequence[torch.device | str | int] | None
    """The device; None = the GPU if there is one. With several GPUs, such as "cuda:0,1", "cuda:all"
    or a list, each has a copy of the model, and the images of a call are divided among them."""
    device_map: str | Mapping[str, str | int | torch.device] | None
    """Spreads the language model's layers over devices; "auto" = over all GPUs; a mapping names the
    device of each layer, such as {"model.layers.7": "cuda:1"}."""
    fit: Literal["squash", "pad"]
    """How an image is fitted into the model's square: "squash" (official) or "pad"."""
    batch_size: int | None
    """Images at a time on each device; None = chosen by the length of the queue, the free memory
    and the device."""
    heatmaps: bool | None
    """Whether to decode heatmaps; None = only with detail "diagnose"."""
    answer_template: bool
    """With detail "score": fills in the text of the answer; the model writes only its digits."""
    max_new_tokens: int | None
    """The most tokens of a reply; None = the checkpoint's limit, or 2048 if it has none."""
