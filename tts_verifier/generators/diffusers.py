"""Any diffusers text-to-image pipeline as a generator.

Every candidate has a random generator of its own, seeded on the CPU, and every batch is
filled up to one fixed size, so that a proposal gives the same picture whatever batch it lands
in: bit for bit in float32 on one machine. Pipelines are called only through their public
arguments.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from tts_verifier.errors import CheckpointError, InputError, UnsupportedError
from tts_verifier.types import Cost, Draw, Job, Sample, Setting, kind_of

if TYPE_CHECKING:
    import torch

BUNDLED: Final = Path(__file__).parent.parent / "shapes" / "weights" / "generator"
BUNDLED_CALL: Final = {
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
}
"""What the bundled generator is called with; its T5 slot is empty, and 16 tokens of nothing
cost less than the default 256."""


class DiffusersGenerator:
    """Draws with a diffusers pipeline.

    Args:
        model: a loaded pipeline, which is used as it is; a folder or hub id for
            `DiffusionPipeline.from_pretrained`; or `"shapes"`, the bundled one.
        steps, guidance, height, width, negative_prompt: of the call; None = the pipeline's
            own default.
        batch_size: candidates drawn at a time.
        dtype: "float32", "bfloat16" or "float16" for loading; None = bfloat16 on a GPU,
            float32 elsewhere.
        device: to load onto; None = the first GPU, else the CPU.
        call: further arguments of the pipeline's call, by name.

    Raises:
        InputError: a setting is out of range or not an argument of the pipeline.
        CheckpointError: the model cannot be found or loaded.
    """

    supports: frozenset[type] = frozenset({Draw})

    def __init__(
        self,
        model: Any,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | None = None,
        batch_size: int = 8,
        dtype: str | None = None,
        device: str | None = None,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value!r}.")
        self.batch_size = batch_size
        given = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": height,
            "width": width,
            "negative_prompt": negative_prompt,
        }
        base = BUNDLED_CALL if model == "shapes" else {}
        chosen = {key: value for key, value in given.items() if value is not None}
        self._call: dict[str, Any] = {**base, **chosen, **(call or {})}
        self.pipe = load(model, dtype, device) if isinstance(model, str | Path) else model
        _check_call(self.pipe, self._call)
        self.settings: Mapping[str, Setting] = self._settings(model)

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Draws every job in batches of `batch_size`.

        A picture with NaN in it, or one that the pipeline's safety checker blanked, becomes
        a sample with an `error`.

        Raises:
            UnsupportedError: a job is not a plain `Draw` from the seed's own noise.
        """
        for job in jobs:
            self._check(job)
        chunks = [jobs[i : i + self.batch_size] for i in range(0, len(jobs), self.batch_size)]
        return [sample for chunk in chunks for sample in self._draw(chunk)]

    def _check(self, job: Job) -> None:
        draw = job.proposal
        if not isinstance(draw, Draw) or draw.until != 1.0 or draw.noise is not None:
            raise UnsupportedError(
                f"{type(self.pipe).__name__} is only asked to draw from a seed to the end; got a "
                f"{kind_of(draw)!r} proposal: {draw}."
            )

    def _draw(self, jobs: Sequence[Job]) -> list[Sample]:
        import torch

        filled = [*jobs, *[jobs[-1]] * (self.batch_size - len(jobs))]
        seeds = [torch.Generator("cpu").manual_seed(_seed(job)) for job in filled]
        start = time.perf_counter()
        with _counted(self.pipe) as rows:
            out = self.pipe(
                prompt=[job.prompt.text for job in filled],
                generator=seeds,
                output_type="pt",
                **self._call,
            )
        cost = Cost(
            network_evaluations=rows["denoiser"] // self.batch_size,
            vae_passes=rows["vae"] // self.batch_size,
            draw_seconds=(time.perf_counter() - start) / len(jobs),
        )
        blanked = getattr(out, "nsfw_content_detected", None) or [False] * len(filled)
        rows_of_batch = zip(jobs, out.images, blanked, strict=False)
        return [_sample(job, pixels, blank, cost) for job, pixels, blank in rows_of_batch]

    def _settings(self, model: Any) -> dict[str, Setting]:
        pipe, named = self.pipe, isinstance(model, str | Path)
        scheduler = getattr(pipe, "scheduler", None)
        flat = {k: v for k, v in self._call.items() if isinstance(v, str | int | float | None)}
        rest = {k: v for k, v in self._call.items() if k not in flat}
        return {
            "model": str(model) if named else str(getattr(pipe.config, "_name_or_path", "")),
            "pipeline": type(pipe).__name__,
            "scheduler": type(scheduler).__name__,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            **flat,
            **({"call": json.dumps(rest, sort_keys=True, default=str)} if rest else {}),
        }


def load(model: str | Path, dtype: str | None = None, device: str | None = None) -> Any:
    """Loads a pipeline from a folder, a hub id or `"shapes"`.

    Components that the folder's `model_index.json` leaves empty (an absent T5, say) are
    passed as None, as diffusers wants it.

    Raises:
        CheckpointError: it cannot be found or loaded.
    """
    import torch
    from diffusers import DiffusionPipeline

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype or ("float32" if place == "cpu" else "bfloat16")
    folder = BUNDLED if model == "shapes" else model
    if model == "shapes" and not (BUNDLED / "model_index.json").exists():
        raise CheckpointError(
            f"The bundled generator's weights belong in {BUNDLED}, and are missing there. "
            "Install the package from its wheel or a full clone."
        )
    try:
        index = DiffusionPipeline.load_config(folder)
        empty = {k: None for k, v in index.items() if isinstance(v, list) and v == [None, None]}
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, kind), **empty)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"No pipeline could be loaded from {model}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def _check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    known = inspect.signature(type(pipe).__call__).parameters
    if unknown := sorted(set(call) - set(known)):
        raise InputError(
            f"{type(pipe).__name__} does not take {', '.join(unknown)}. "
            f"It takes {', '.join(n for n in known if n != 'self')}."
        )


def _seed(job: Job) -> int:
    if not isinstance(job.proposal, Draw):
        raise UnsupportedError(f"Only a draw has a seed to start from, got {job.proposal}.")
    return job.proposal.seed


def _sample(job: Job, pixels: torch.Tensor, blanked: bool, cost: Cost) -> Sample:
    """Makes a sample of (3, H, W) floats in [0, 1]."""
    array = pixels.detach().float().cpu().permute(1, 2, 0).numpy()
    if not np.isfinite(array).all():
        return Sample(job, None, cost=cost, error="The drawing has NaN or infinite pixels.")
    if blanked:
        return Sample(job, None, cost=cost, error="The pipeline's safety checker blanked it.")
    image = Image.fromarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8))
    return Sample(job, image, cost=cost)


@contextmanager
def _counted(pipe: Any) -> Iterator[dict[str, int]]:
    """Counts the rows that go through the denoiser and the VAE while the pipeline runs."""
    rows = {"denoiser": 0, "vae": 0}
    vae = getattr(pipe, "vae", None)
    parts = {
        "denoiser": getattr(pipe, "transformer", None) or getattr(pipe, "unet", None),
        "vae": getattr(vae, "decoder", None),
    }

    def count(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else next(iter(kwargs.values()))
            rows[name] += len(first)

        return hook

    hooks = [
        module.register_forward_pre_hook(count(name), with_kwargs=True)
        for name, module in parts.items()
        if module is not None
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()
