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
    """"fp8" rounds the weights of the language model and the vision tower to 8 bits once they are
    loaded, and then takes about half the memory for them. On an H100 it verifies 1.3 to 1.5 times
    as many images a second; GPUs older than Ada are refused, and a CPU is slow. None = dtype."""
    device: torch.device | str | Sequence[torch.device | str | int] | None
    """The main device, None = the GPU if there is one. Several GPUs, such as "cuda:0,1", "cuda:all"
    or a list, get a copy of the model each and share the images of a call."""
    device_map: str | Mapping[str, str | int | torch.device] | None
    """Spreads the language model's layers; "auto" = over all GPUs, a mapping takes names such as
    "model.layers.7" to devices."""
    fit: Literal["squash", "pad"]
    """How an image is fitted into the model's square: "squash" (official) or "pad"."""
    batch_size: int | None
    """Images at a time on each device, None = as many as the queue, its free memory and the device
    suggest."""
    heatmaps: bool | None
    """Whether to decode heatmaps, None = with detail "diagnose" only."""
    answer_template: bool
    """With detail "score", give the text of the answer and ask for its digits alone."""
    max_new_tokens: int | None
    """The most tokens of a reply, None = the checkpoint's limit, or 2048."""
