"""Heatmaps of replies, decoded a fixed number at a time as replies end.

The head's inner tensors are large (32 MB each for one map of the official model in bf16), so
that few maps are decoded together. On a GPU, whose many small kernels a host can hardly
launch in time, decoding a group is recorded once for each grid and replayed. Full groups are
started at once and fetched at the end, so that the host need not wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.generation import GeneratedReply
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.vision import Grid

MAPS: Final = ("misalignment", "artifact")
CHUNK: Final = 8
"""Maps decoded together."""


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    """A captured decoding of `CHUNK` maps, where it reads and where it writes."""

    graph: torch.cuda.CUDAGraph
    states: Tensor
    visual: Tensor
    maps: Tensor


class MapDecoder:
    """Decodes up to `CHUNK` maps of one grid; keeps what it recorded between calls."""

    def __init__(self, model: ImageDoctorModel) -> None:
        self.model = model
        self._recorded: dict[Grid, _Recorded] = {}
        self._weights: tuple[int, ...] = ()

    def forget(self) -> None:
        """Gives back what was recorded."""
        self._recorded = {}

    def __call__(self, states: Tensor, visual: Tensor, cells: Grid) -> Tensor:
        """Does what `decode_maps` does; at most `CHUNK` maps."""
        if not states.is_cuda:
            return decode_maps(self.model, states, visual, cells)
        weights = tuple(p.data_ptr() for p in self.model.heatmap.parameters())
        if weights != self._weights:
            self._weights, self._recorded = weights, {}
        if cells not in self._recorded:
            self._recorded[cells] = self._record(states, visual, cells)
        kept, count = self._recorded[cells], len(states)
        kept.states[:count].copy_(states)
        kept.visual[:count].copy_(visual)
        kept.graph.replay()
        return kept.maps[:count].clone()

    def _record(self, states: Tensor, visual: Tensor, cells: Grid) -> _Recorded:
        held = [t.new_zeros(CHUNK, *t.shape[1:]) for t in (states, visual)]
        side = torch.cuda.Stream(states.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            decode_maps(self.model, held[0], held[1], cells)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            maps = decode_maps(self.model, held[0], held[1], cells)
        return _Recorded(graph, held[0], held[1], maps)


class MapQueue:
    """Gathers wanted maps by grid, and decodes them in groups of `CHUNK`."""

    def __init__(self, decoder: MapDecoder) -> None:
        self._decoder, model = decoder, decoder.model
        self._merge = int(model.config.vision["spatial_merge_size"])
        self._wanted: dict[Grid, list[tuple[int, str, Tensor, Tensor]]] = {}
        self._done: list[tuple[list[tuple[int, str]], Tensor]] = []

    def add(self, number: int, reply: GeneratedReply, grid: Grid) -> None:
        """Asks for the maps whose token a reply has; `grid` of its image in patches."""
        cells = (grid[0] // self._merge, grid[1] // self._merge)
        wanted = self._wanted.setdefault(cells, [])
        for k, name in enumerate(MAPS):
            if reply.has_map[k]:
                wanted.append((number, name, reply.map_states[k], reply.visual))
        while len(wanted) >= CHUNK:
            self._decode(cells, wanted[:CHUNK])
            del wanted[:CHUNK]

    def finish(self) -> dict[int, dict[str, NDArray[np.float32]]]:
        """Decodes the rest; returns each request's maps by name, float32 in [0, 1]."""
        for cells, wanted in self._wanted.items():
            if wanted:
                self._decode(cells, wanted)
        self._wanted = {}
        if any(maps.is_pinned() for _, maps in self._done):
            torch.cuda.current_stream().synchronize()
        found: dict[int, dict[str, NDArray[np.float32]]] = {}
        for names, maps in self._done:
            for (number, name), grid_map in zip(names, maps.numpy(), strict=True):
                # A copy, so that one map does not keep its whole group in pinned memory.
                found.setdefault(number, {})[name] = grid_map.copy()
        return found

    def _decode(self, cells: Grid, part: list[tuple[int, str, Tensor, Tensor]]) -> None:
        states = torch.stack([state for _, _, state, _ in part])
        visual = torch.stack([features for _, _, _, features in part])
        maps = self._decoder(states, visual, cells)
        if maps.is_cuda:
            maps = torch.empty(maps.shape, pin_memory=True).copy_(maps, non_blocking=True)
        self._done.append(([(number, name) for number, name, _, _ in part], maps))


@torch.inference_mode()
def decode_maps(model: ImageDoctorModel, states: Tensor, visual: Tensor, cells: Grid) -> Tensor:
    """Decodes N maps of one grid together.

    Args:
        model: gives the heads.
        states: (N, H).
        visual: (N, cells, H).
        cells: (rows, columns) of merged cells.

    Returns:
        float32 (N, 16 rows, 16 columns) in [0, 1], on the model's device.
    """
    # In float32 cuDNN would otherwise round what it convolves to 10 bits.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.sigmoid(model.heatmap_logits(states, visual, cells).float())
