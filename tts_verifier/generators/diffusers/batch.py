"""One batch: what its jobs have in common, the pipeline's arguments, and what it returned."""

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

IMAGE_FIELDS: Final = ("images", "image", "frames")
"""The names that pipelines give to the field of their output with the images."""
SAFETY_FIELDS: Final = ("nsfw_content_detected", "nsfw_detected")
"""The names that pipelines give to the field that says which images a safety checker blanked."""
BLANKED_ERROR: Final = "The pipeline's safety checker blanked it."
INTERRUPTED_ERROR: Final = "The pipeline was interrupted"
"""How the error of a candidate begins that `pipe._interrupt` stopped."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What the jobs of one batch have in common; jobs with equal plans may share a batch."""

    start: int = 0
    """The first step."""
    stop: int | None = None
    """The step after the last one; None = take all steps."""
    given_latents: bool = False
    """Whether the call passes latents to the pipeline, rather than the seeds alone."""
    strength: float = 0.0
    """The strength of a repaint; 0 = no repaint."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the images to repaint."""
    steps: int = 0
    """The number of steps of drafts; 0 = as many as the call says."""
    interval: int = 1
    """Every how many steps cached drafts evaluate the network."""


@dataclass(slots=True, eq=False)
class BatchOutput:
    """A batch as the pipeline returned it."""

    pixels: NDArray[np.float32]
    """The images, (B, H, W, 3) in [0, 1]."""
    blanked: Sequence[bool] | None = None
    """For each image, whether a safety checker blanked it; None = no checker."""
    latents: torch.Tensor | None = None
    """The latents of unfinished images, (B, ...)."""
    progress: float = 1.0
    """The fraction of the steps that were taken, in [0, 1]."""
    interrupted: bool = False
    """Whether somebody stopped the pipeline."""
    error: str = ""
    """Why the steps that were asked for were not all taken."""

    @classmethod
    def from_pipeline(cls, output: Any) -> BatchOutput:
        """Reads what a pipeline returns for `output_type="np"`; a video must be one frame.

        "pt" would not do: some families then return pixels in [-1, 1] and no safety check.

        Raises:
            UnsupportedError: there are no such pixels.
        """
        pixels: Any = _first_field(output, IMAGE_FIELDS)
        if getattr(pixels, "ndim", 0) == 5 and pixels.shape[1] == 1:
            pixels = pixels[:, 0]
        if getattr(pixels, "ndim", 0) != 4 or pixels.shape[3] != 3:
            shape = tuple(getattr(pixels, "shape", ())) or type(pixels).__name__
            raise UnsupportedError(
                f"A pipeline must return RGB images (B, H, W, 3) for output_type='np', "
                f"{type(output).__name__} has {shape}. A video pipeline needs num_frames=1."
            )
        return cls(pixels, _first_field(output, SAFETY_FIELDS))

    def interrupt(self, taken: int, steps: int) -> None:
        """Notes that somebody stopped the pipeline after some of its steps."""
        self.interrupted = True
        # During the last step it comes too late to leave one out: the images are finished.
        if taken < steps:
            self.progress = taken / steps
            self.error = f"{INTERRUPTED_ERROR} after {taken} of {steps} steps."

    def sample(self, row: int, job: Job, cost: Cost) -> Sample:
        """Returns a row as the sample of a job, with an `error` if it is no usable image."""
        pixels = self.pixels[row]
        error = self.error
        # Checked before rounding, because a cast to uint8 turns NaN into an arbitrary value.
        if not error and not np.isfinite(pixels).all():
            error = (
                f"The image of seed {getattr(job.proposal, 'seed', None)} has NaN or infinite "
                "pixels. A VAE in float16 may overflow; bfloat16 or float32 does not."
            )
        if not error and self.blanked and self.blanked[row]:
            error = BLANKED_ERROR
        if error and not self.error:
            return Sample(job, None, self.progress, cost, error=error, interrupted=self.interrupted)
        # An unfinished image may have NaN.
        finite = np.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0)
        image = Image.fromarray(np.rint(np.clip(finite, 0, 1) * 255).astype(np.uint8))
        state: State | None = None
        if self.latents is not None:
            # NumPy has no bfloat16; float32 holds every 16-bit value exactly.
            state = {"latents": self.latents[row].detach().float().cpu().numpy()}
        return Sample(
            job, image, self.progress, cost, state, error=error, interrupted=self.interrupted
        )


def _first_field(output: Any, names: Sequence[str]) -> Any:
    return next((getattr(output, name) for name in names if hasattr(output, name)), None)


def seeded_generators(jobs: Sequence[Job]) -> list[torch.Generator]:
    """Returns a random generator on the CPU for every job, at the start of its own seed."""
    import torch

    # On the CPU, where a seed gives the same noise whatever device the pipeline computes on.
    seeds = [getattr(job.proposal, "seed", 0) for job in jobs]
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def prompt_arguments(prompts: Sequence[str], call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call for several prompts.

    Every other text of the call, such as the negative prompt, is repeated for each prompt.
    """
    repeated = {k: [v] * len(prompts) for k, v in call.items() if _is_text_per_prompt(k, v)}
    return {"prompt": list(prompts), **call, **repeated}


def _is_text_per_prompt(name: str, value: Any) -> bool:
    # This includes `prompt_2` and `negative_prompt_2`, but not `system_prompt`.
    return name.startswith(("prompt_", "negative_prompt")) and isinstance(value, str)


def check_fractions(proposal: Proposal) -> None:
    """Raises InputError when a fraction of a proposal is not in [0, 1]."""
    for name in ("until", "renoise", "eta"):
        value = getattr(proposal, name, 0.0)
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be in [0, 1], got {value!r}.")
