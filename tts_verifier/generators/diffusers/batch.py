"""What a batch has in common before it is drawn, and what a pipeline gave for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.types import Cost, Job, Proposal, Sample, State

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

PICTURES: Final = ("images", "image", "frames")
"""What pipelines name the field of their output that pictures are in."""
UNSAFE: Final = ("nsfw_content_detected", "nsfw_detected")
"""What they name the one that says of every picture whether a safety checker blanked it."""
BLANKED: Final = "The pipeline's safety checker blanked it."


@dataclass(frozen=True, slots=True)
class Plan:
    """What the jobs of one batch have in common.

    Steps `start` to `stop` (None = the last), from `given` latents or the seed's own noise;
    or a repaint of `strength` of pictures of one `size`.
    """

    start: int = 0
    stop: int | None = None
    given: bool = False
    strength: float = 0.0
    size: tuple[int, int] = (0, 0)


@dataclass(slots=True, eq=False)
class Drawn:
    """A batch as the pipeline gave it: pixels float32 (B, H, W, 3) in [0, 1]."""

    pixels: NDArray[np.float32]
    blanked: Sequence[bool] | None = None
    latents: torch.Tensor | None = None
    progress: float = 1.0

    @classmethod
    def of(cls, out: Any) -> Drawn:
        """Reads what a pipeline returns for `output_type="np"`; a video must be one frame.

        Not "pt", for which some families return pixels in [-1, 1] and no verdict on safety.

        Raises:
            UnsupportedError: there are no such pixels.
        """
        found = next((getattr(out, name) for name in PICTURES if hasattr(out, name)), None)
        pixels: Any = found
        if getattr(pixels, "ndim", 0) == 5 and pixels.shape[1] == 1:
            pixels = pixels[:, 0]
        if getattr(pixels, "ndim", 0) != 4 or pixels.shape[3] != 3:
            shape = tuple(getattr(pixels, "shape", ())) or type(pixels).__name__
            raise UnsupportedError(
                f"A pipeline must return RGB pictures (B, H, W, 3) for output_type='np', "
                f"{type(out).__name__} has {shape}. A video pipeline needs num_frames=1."
            )
        return cls(
            pixels, next((getattr(out, name) for name in UNSAFE if hasattr(out, name)), None)
        )

    def sample(self, row: int, job: Job, cost: Cost) -> Sample:
        """Returns a row as a job's sample, with an error if it is no picture."""
        array = self.pixels[row]
        error = ""
        if not np.isfinite(array).all():
            error = (
                f"The drawing of seed {getattr(job.proposal, 'seed', None)} has NaN or infinite "
                "pixels. A VAE in float16 may overflow; bfloat16 or float32 does not."
            )
        if not error and self.blanked and self.blanked[row]:
            error = BLANKED
        if error:
            return Sample(job, None, self.progress, cost, error=error)
        image = Image.fromarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8))
        state: State | None = None
        if self.latents is not None:
            state = {"latents": self.latents[row].detach().float().cpu().numpy()}
        return Sample(job, image, self.progress, cost, state)


def generators(jobs: Sequence[Job]) -> list[torch.Generator]:
    """Returns a generator on the CPU for every job, at the start of its own seed."""
    import torch

    seeds = [getattr(job.proposal, "seed", 0) for job in jobs]
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def asked(prompts: list[str], call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a call for several prompts, with every other text of it for each of them."""
    each = {k: [v] * len(prompts) for k, v in call.items() if _is_text(k, v)}
    return {"prompt": prompts, **call, **each}


def _is_text(name: str, value: Any) -> bool:
    # `prompt_2` and the like, `negative_prompt` and its likes; not `system_prompt`.
    return name.startswith(("prompt_", "negative_prompt")) and isinstance(value, str)


def check_shares(proposal: Proposal) -> None:
    """Raises InputError when a share of a proposal is not in [0, 1]."""
    for name in ("until", "renoise", "eta"):
        value = getattr(proposal, name, 0.0)
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be in [0, 1], got {value!r}.")
