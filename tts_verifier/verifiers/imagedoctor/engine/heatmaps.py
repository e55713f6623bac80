"""Decodes the heatmaps of replies, a fixed number at a time, while replies are generated.

The heatmap head's inner tensors are large (32 MB for each map of the official model in bf16), so
only few maps are decoded together. Its many small kernels are hard to launch in time, so on a
GPU the decoding of a group is captured once for each grid and replayed. A group starts as soon as
it is full and is fetched a few groups later, so the host seldom waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.engine.decode_step import CAPTURES
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.vision import Grid
from tts_verifier.verifiers.imagedoctor.requests import GeneratedReply

MAPS: Final = ("misalignment", "artifact")
"""The maps' names, in the order of a reply's `map_states`."""
MAP_BATCH: Final = 8
"""Maps decoded together."""
GROUPS_IN_FLIGHT: Final = 4
"""Groups that may be decoding before the host waits for the oldest: enough to keep a GPU busy."""
_CUDNN_FLAGS: Final = Lock()


@dataclass(frozen=True, slots=True, eq=False)
class _CapturedDecoding:
    """A CUDA graph that decodes `MAP_BATCH` maps, with its inputs and output."""

    graph: torch.cuda.CUDAGraph
    """Reads `states` and `visual`, writes `maps`."""
    states: Tensor
    """(MAP_BATCH, H)."""
    visual: Tensor
    """(MAP_BATCH, merged tokens, H)."""
    maps: Tensor
    """(MAP_BATCH, 16 rows, 16 columns)."""


class MapDecoder:
    """Decodes up to `MAP_BATCH` maps of one grid. Not safe to share between threads.

    Args:
        model: gives the heads; graphs captured from them are kept between calls.
    """

    def __init__(self, model: ImageDoctorModel) -> None:
        self.model = model
        if model.lm_head.weight.is_cuda:
            # In this order of memory no convolution needs to copy its weight first.
            for weight in filter(lambda p: p.ndim == 4, model.heatmap.parameters()):
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self._captured: dict[Grid, _CapturedDecoding] = {}
        self._addresses: tuple[int, ...] = ()

    def forget(self) -> None:
        """Frees the captured graphs; they are captured anew when needed."""
        self._captured = {}

    def forget_moved(self) -> None:
        """Frees the graphs if a weight has moved in memory since the last call of this method.

        Decoding does not look: a replay would read the weight's old place.
        """
        addresses = tuple(p.data_ptr() for p in self.model.heatmap.parameters())
        if addresses != self._addresses:
            self._addresses = addresses
            self.forget()

    def __call__(self, states: Tensor, visual: Tensor, merged_grid: Grid) -> Tensor:
        """Decodes as `decode_maps` does, at most `MAP_BATCH` maps."""
        if not states.is_cuda:
            return decode_maps(self.model, states, visual, merged_grid)
        if merged_grid not in self._captured:
            with CAPTURES:
                self._captured[merged_grid] = self._capture(states, visual, merged_grid)
        captured, count = self._captured[merged_grid], len(states)
        # The rows after `count` decode what an earlier call left there; nobody reads them.
        captured.states[:count].copy_(states)
        captured.visual[:count].copy_(visual)
        captured.graph.replay()
        # A copy, because the next replay overwrites the maps.
        return captured.maps[:count].clone()

    def _capture(self, states: Tensor, visual: Tensor, merged_grid: Grid) -> _CapturedDecoding:
        inputs = [t.new_zeros(MAP_BATCH, *t.shape[1:]) for t in (states, visual)]
        stream = torch.cuda.Stream(states.device)
        stream.wait_stream(torch.cuda.current_stream())
        # A warm-up run, because a capture must not compile kernels or choose algorithms.
        with torch.cuda.stream(stream):
            decode_maps(self.model, inputs[0], inputs[1], merged_grid)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            maps = decode_maps(self.model, inputs[0], inputs[1], merged_grid)
        return _CapturedDecoding(graph, inputs[0], inputs[1], maps)


class _PendingMap(NamedTuple):
    """A map that waits for its group."""

    number: int
    """Identifies the request."""
    name: str
    """One of `MAPS`."""
    state: Tensor
    """(H,), the state that predicts the map's token."""
    visual: Tensor
    """(merged tokens, H), the image's merged features."""


class _DecodedGroup(NamedTuple):
    """A group whose maps are being decoded and copied to the host."""

    group: list[_PendingMap]
    """The maps, in order."""
    maps: Tensor
    """(maps, 16 rows, 16 columns), on the host."""
    ready: torch.cuda.Event | None
    """Tells that the copy is complete; None = it is already."""


class MapQueue:
    """Collects maps to decode by grid, and decodes them in groups.

    Not safe to share between threads. The weights must not move in memory while it is in use.

    Args:
        decoder: decodes the groups.
    """

    def __init__(self, decoder: MapDecoder) -> None:
        self._decoder, model = decoder, decoder.model
        # Here, because to ask each weight takes as long as the decoding of a group.
        decoder.forget_moved()
        self._merge = int(model.config.vision["spatial_merge_size"])
        self._pending: dict[Grid, list[_PendingMap]] = {}
        self._in_flight: deque[_DecodedGroup] = deque()
        self._maps: dict[int, dict[str, NDArray[np.float32]]] = {}

    def add(self, number: int, reply: GeneratedReply, grid: Grid) -> None:
        """Queues the maps that a reply asks for, and decodes groups that are full.

        Args:
            number: identifies the request in `finish`.
            reply: has a map wherever `has_map` is True.
            grid: rows and columns of the image's patches.
        """
        merged_grid = (grid[0] // self._merge, grid[1] // self._merge)
        pending = self._pending.setdefault(merged_grid, [])
        for k, name in enumerate(MAPS):
            if reply.has_map[k]:
                pending.append(_PendingMap(number, name, reply.map_states[k], reply.visual))
        while len(pending) >= MAP_BATCH:
            self._decode(merged_grid, pending[:MAP_BATCH])
            del pending[:MAP_BATCH]

    def finish(self) -> dict[int, dict[str, NDArray[np.float32]]]:
        """Decodes the rest; returns each request's maps by name, float32 in [0, 1].

        The queue is then empty, and can be used again.
        """
        for merged_grid, pending in self._pending.items():
            if pending:
                self._decode(merged_grid, pending)
        self._pending = {}
        while self._in_flight:
            self._fetch()
        maps, self._maps = self._maps, {}
        return maps

    def _decode(self, merged_grid: Grid, group: list[_PendingMap]) -> None:
        """Starts the decoding of a group and the copy to the host."""
        states = torch.stack([pending_map.state for pending_map in group])
        visual = torch.stack([pending_map.visual for pending_map in group])
        maps = self._decoder(states, visual, merged_grid)
        ready = None
        # Into pinned memory, so that the host need not wait for this group.
        if maps.is_cuda:
            host_maps = torch.empty(maps.shape, dtype=maps.dtype, pin_memory=True)
            maps = host_maps.copy_(maps, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._in_flight.append(_DecodedGroup(group, maps, ready))
        # Pinned memory is slow to allocate. Once fetched, it serves a later group.
        if len(self._in_flight) > GROUPS_IN_FLIGHT:
            self._fetch()

    def _fetch(self) -> None:
        """Waits for the oldest group in flight, and keeps its maps in ordinary memory."""
        group, maps, ready = self._in_flight.popleft()
        if ready is not None:
            ready.synchronize()
        for pending_map, grid_map in zip(group, maps.numpy(), strict=True):
            self._maps.setdefault(pending_map.number, {})[pending_map.name] = grid_map.copy()


@torch.inference_mode()
def decode_maps(
    model: ImageDoctorModel, states: Tensor, visual: Tensor, merged_grid: Grid
) -> Tensor:
    """Decodes N maps of one grid together.

    Args:
        model: gives the heads.
        states: (N, H).
        visual: (N, merged tokens, H).
        merged_grid: (rows, columns) of merged tokens.

    Returns:
        float32 (N, 16 rows, 16 columns) in [0, 1], on the model's device.
    """
    if not states.is_cuda:
        return torch.sigmoid(model.heatmap_logits(states, visual, merged_grid).float())
    # cuDNN's TF32 would round the inputs of float32 convolutions to 10 bits. `enabled` is False
    # by default here, and maps took six times as long without cuDNN. The flags are the process's:
    # two threads at once would each put back what the other has set.
    with _CUDNN_FLAGS, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.sigmoid(model.heatmap_logits(states, visual, merged_grid).float())
