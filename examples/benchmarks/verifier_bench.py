"""What benchmarks of the verifier share: its model and requests, a clock, and a table of rows."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from random_models import TEXT_TOKENS, BothMapsEngine, image_doctor_model

from tts_verifier.analysis.svg import STYLE
from tts_verifier.loading.devices import check_devices
from tts_verifier.log.environment import environment
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import GPU_SEQUENCES
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.quantise import quantise_model
from tts_verifier.verifiers.imagedoctor.replicas import Replica, answer_together
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits, GenerationRequest
from tts_verifier.verifiers.imagedoctor.text.answer_template import AnswerTemplate

GIB = 2**30
Row = dict[str, Any]


class Bench:
    """The model, its requests, and a clock.

    Args:
        device: "cuda" or "cpu"; several GPUs, such as "cuda:0,1", get a copy of the model each.
        images: how many requests there are.
        tokens: of each reply.
        text: text tokens of a prompt.
        grid: patches along a side of an image; with `folder` the processor's.
        sequences: replies at a time; None = automatic.
        folder: a checkpoint; None = random weights of the released size.
        precision: "fp8" rounds the products.
    """

    def __init__(
        self,
        device: str,
        *,
        images: int,
        tokens: int,
        text: int = TEXT_TOKENS,
        grid: int = 36,
        sequences: int | None = None,
        folder: str | None = None,
        precision: str | None = None,
    ) -> None:
        self.images, self.tokens, self.sequences = images, tokens, sequences
        self.together = min(sequences or GPU_SEQUENCES, images)
        main, *others = check_devices(device)
        self.cuda = main.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.grid = (grid, grid)
        self.level_values = Processor().level_values
        if folder:
            self.model = load_model(Path(folder), dtype=self.dtype).to(main)
            processor = Processor.from_folder(Path(folder), self.model.config)
            self.grid, self.level_values = processor.grid, processor.level_values
        else:
            self.model = image_doctor_model(str(main))
        self.model.requires_grad_(False).eval()
        self.models = [self.model, *(copy.deepcopy(self.model).to(other) for other in others)]
        for model in self.models if precision == "fp8" else ():
            quantise_model(model)
        self.requests = self._requests(images, text)

    def _requests(self, count: int, tokens: int) -> list[GenerationRequest]:
        config, rng = self.model.config, np.random.default_rng(0)
        h, w = self.grid
        cells = h * w // int(config.vision["spatial_merge_size"]) ** 2
        levels = 3 * int(config.vision["patch_size"]) ** 2
        low = min(config.image_token_id, config.vision_start_token_id, 256)
        requests = []
        for _ in range(count):
            text = rng.integers(0, low, tokens).tolist()
            # As the verifier's processor prepares images.
            pixels = rng.integers(0, 256, (h * w, levels), np.uint8)
            ids = [*text[:16], *[config.image_token_id] * cells, *text[16:]]
            requests.append(
                GenerationRequest(ids, pixels, self.grid, level_values=self.level_values)
            )
        return requests

    def patches(self, request: GenerationRequest) -> NDArray[np.float32]:
        """Returns a request's patches as other programs take them, see `Patches.values`."""
        frames = int(self.model.config.vision["temporal_patch_size"])
        levels = request.patches.reshape(len(request.patches), 3, 1, -1)
        found = self.level_values[np.arange(3)[:, None, None], levels]
        return np.repeat(found, frames, axis=2).reshape(len(levels), -1)

    def replicas(self, limits: GenerationLimits) -> list[Replica]:
        """Returns one for each device; all their replies have both maps."""
        made = []
        for model in self.models:
            replica = Replica(model, limits, AnswerTemplate(), self.sequences)
            replica.engine = BothMapsEngine(model, limits, sequences=self.sequences)
            made.append(replica)
        return made

    def answers(
        self, replicas: list[Replica], requests: list[GenerationRequest], *, maps: bool = True
    ) -> list[list[int]]:
        """Answers requests with both maps or without; returns the tokens of each reply."""
        grid = self.grid if maps else None
        queue, count = iter(requests), len(requests)
        answers = answer_together(replicas, queue, count, AnswerTemplate(), grid)
        return [reply.ids for reply, _ in answers]

    def timed(self, run: Callable[[], Any]) -> tuple[float, float, Any]:
        """Returns seconds, peak GiB and the result of `run`."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        result = run()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return seconds, torch.cuda.max_memory_allocated() / GIB if self.cuda else 0.0, result

    def middle(self, run: Callable[[], Any], runs: int) -> tuple[float, float, Any, Row]:
        """Returns the median run's `timed` values, and the fastest and slowest seconds."""
        timings = sorted((self.timed(run) for _ in range(runs)), key=lambda one: one[0])
        spread = {"fastest_s": timings[0][0], "slowest_s": timings[-1][0]} if runs > 1 else {}
        return (*timings[runs // 2], spread)

    def rate(self, run: Callable[[], Any], repeats: int) -> float:
        """Returns the mean seconds of `repeats` runs, after one that warms up."""
        run()
        return self.timed(lambda: [run() for _ in range(repeats)])[0] / repeats


def write(rows: list[Row], path: Path) -> None:
    """Writes Parquet; each row names the device and torch's version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    machine = {"device": environment()["device"], "torch": torch.__version__}
    rows = [r | machine for r in rows]
    keys = list(dict.fromkeys(key for r in rows for key in r))
    pq.write_table(pa.table({key: [r.get(key) for r in rows] for key in keys}), path)


def picture(rows: list[Row]) -> str:
    """Draws images a second as bars in increasing order, as SVG."""
    bars = sorted((r for r in rows if "share_of_floor" in r), key=lambda r: r["images_per_s"])
    most, parts = bars[-1]["images_per_s"], []
    for i, r in enumerate(bars):
        y, width = 34 + 26 * i, 300 * r["images_per_s"] / most
        label = f"{r['images_per_s']:.3g} images/s, {r['share_of_floor']:.1%}"
        parts.append(
            f'<text x="104" y="{y + 14}" text-anchor="end">{r["part"]}</text>'
            f'<rect x="112" y="{y}" width="{width:.1f}" height="18" class="bar f{i % 4}"/>'
            f'<text x="{118 + width:.1f}" y="{y + 14}">{label}</text>'
        )
    size = f'width="580" height="{44 + 26 * len(bars)}"'
    title = "Images scored a second, and share of the ceiling"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} class="chart"><title>{title}</title>'
        f'<style>{STYLE}</style><text x="112" y="20" class="title">{title}</text>'
        f"{''.join(parts)}</svg>\n"
    )
