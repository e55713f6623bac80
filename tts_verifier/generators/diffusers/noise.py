"""Initial noise as a function of a proposal and its ancestors, in the pipeline's own layout.

A rehearsal calls the pipeline as usual and stops it before the first evaluation of the denoiser.
By then the pipeline has set up its schedule and prepared its noise, and both have been recorded.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.diffusers.hooks import denoisers_of, replaced_attribute
from tts_verifier.generators.diffusers.schedule import (
    NoiseLevel,
    initial_scale,
    noise_levels,
    sample_forward_kernel,
)
from tts_verifier.types import Draw, Job, LowBand, Near, Trial

if TYPE_CHECKING:
    import torch


class _StopRehearsal(Exception):
    """Ends a rehearsal from inside the pipeline."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What a pipeline prepares before its first step."""

    pipe: Any
    """The pipeline itself."""
    arguments: Mapping[str, Any]
    """The arguments of its `prepare_latents`, for one image."""
    scheduler: Any
    """A copy of its scheduler, with timesteps set."""

    def levels(self) -> list[NoiseLevel]:
        """Returns the noise levels of the whole schedule; see `schedule.noise_levels`."""
        return noise_levels(self.scheduler)

    @property
    def steps(self) -> int:
        """The number of steps of the whole schedule."""
        return len(self.scheduler.timesteps)

    @property
    def scale(self) -> float:
        """The factor by which the pipeline multiplies noise; 1 for most schedulers."""
        return initial_scale(self.scheduler, 0, self.steps)

    def starting_latents(self, job: Job, start: int, generator: torch.Generator) -> torch.Tensor:
        """Returns the latents of a job before step `start`, (1, ...).

        Args:
            job: a `Draw` or a `Continue`; the latter goes back to `start` if need be.
            start: a step of the whole schedule.
            generator: makes the fresh noise for going back.

        Raises:
            InputError: the parent has no state, or the noise cannot be made.
        """
        import torch

        proposal = job.proposal
        if isinstance(proposal, Draw):
            return self.initial_noise(proposal, job.ancestors) * self.scale
        parent = job.ancestors[0]
        if parent.state is None:
            raise InputError(f"Continue needs the state of trial {parent.id}, it has none.")
        latents = torch.from_numpy(parent.state.load()["latents"].copy())[None]
        reached = round(parent.progress * self.steps)
        if start < reached:
            levels = self.levels()
            fresh = torch.randn(latents.shape, generator=generator)
            latents = sample_forward_kernel(
                latents, levels[reached], target=levels[start], noise=fresh
            )
        return latents

    def latents_argument(self, latents: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Returns the `latents` argument with which the pipeline starts from these latents.

        The pipeline multiplies its argument by the initial scale, which is divided out here.
        """
        place = {key: self.arguments[key] for key in ("device", "dtype") if key in self.arguments}
        return latents.to(**place) / initial_scale(self.scheduler, start, stop)

    def initial_noise(self, draw: Draw, ancestors: Sequence[Trial]) -> torch.Tensor:
        """Returns the N(0, 1) noise that a `Draw` starts from, (1, ...), in the pipeline's layout.

        Raises:
            InputError: the noise cannot be made as the proposal says.
            UnsupportedError: the proposal sets a low band, and the latents are not (C, h, w).
        """
        fresh = self._seed_noise(draw.seed)
        if isinstance(draw.noise, Near):
            return self._near_noise(fresh, draw.noise, ancestors)
        if isinstance(draw.noise, LowBand):
            return self._low_band_noise(fresh, draw.noise)
        return fresh

    def _seed_noise(self, seed: int) -> torch.Tensor:
        import torch

        changes = {"generator": torch.Generator("cpu").manual_seed(seed), "latents": None}
        result = self.pipe.prepare_latents(**{**self.arguments, **changes})
        # Some families also return the ids of the latents' positions.
        latents: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return latents / self.scale

    def _near_noise(
        self, fresh: torch.Tensor, near: Near, ancestors: Sequence[Trial]
    ) -> torch.Tensor:
        parent, r = ancestors[0].proposal, near.radius
        if not isinstance(parent, Draw) or not 0 < r <= 1:
            raise InputError(
                "Near needs a parent that was generated from noise and a radius in (0, 1], got "
                f"{parent} and {r}."
            )
        # The squares of both weights add up to 1, so the mixture has unit variance again.
        parent_noise = self.initial_noise(parent, ancestors[1:])
        mixed: torch.Tensor = (1 - r**2) ** 0.5 * parent_noise.float() + r * fresh.float()
        return mixed.to(fresh.dtype)

    def _low_band_noise(self, fresh: torch.Tensor, band: LowBand) -> torch.Tensor:
        """Replaces the low band of orthonormal Haar steps: 2^level times the blocks' means."""
        import torch
        from torch.nn.functional import avg_pool2d, interpolate

        if fresh.ndim != 4:
            raise UnsupportedError(
                f"{type(self.pipe).__name__} packs its latents, so their low band cannot be set."
            )
        block = 2**band.level
        _, channels, height, width = fresh.shape
        needed = channels * (height // block) * (width // block)
        if band.level < 1 or height % block or width % block or len(band.coefficients) != needed:
            raise InputError(
                f"A low band of level {band.level} has {needed} coefficients for noise of shape "
                f"{tuple(fresh.shape[1:])}, whose sides 2^level must divide; got "
                f"{len(band.coefficients)}."
            )
        # Adding a constant to a block changes its mean and no detail coefficient of the Haar steps.
        means = avg_pool2d(fresh.float(), block)
        targets = torch.tensor(band.coefficients, device=fresh.device).reshape(means.shape) / block
        return (fresh.float() + interpolate(targets - means, scale_factor=block)).to(fresh.dtype)


def latents_problem(pipe: Any) -> str:
    """Says why a pipeline cannot start from latents that it is passed, empty if it can."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    if "latents" not in parameters:
        return "its call takes no `latents`"
    if "strength" in parameters:
        return "it starts from an image, and its call takes the `strength` of the change"
    if not hasattr(pipe, "prepare_latents") or not denoisers_of(pipe):
        return "it has no `prepare_latents`, or no `transformer` or `unet`"
    return ""


def rehearse(pipe: Any, call: Mapping[str, Any]) -> Rehearsal:
    """Lets a pipeline prepare one image, and evaluates nothing.

    Args:
        pipe: the pipeline.
        call: the arguments of its call, with one prompt.

    Raises:
        UnsupportedError: the pipeline cannot start from latents that it is passed.
    """
    if why := latents_problem(pipe):
        raise UnsupportedError(f"{type(pipe).__name__} generates from its own noise only: {why}.")

    def stop(*_: Any) -> None:
        raise _StopRehearsal

    # Prepended, so that it stops the call before the hook that counts evaluations: none happens.
    hooks = [n.register_forward_pre_hook(stop, prepend=True) for n in denoisers_of(pipe)]
    try:
        with _recorded_arguments(pipe) as arguments:
            pipe(**call)
    except _StopRehearsal:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    # A copy, because the next call of the pipeline sets its scheduler's timesteps anew.
    return Rehearsal(pipe, arguments, copy.deepcopy(pipe.scheduler))


@contextmanager
def _recorded_arguments(pipe: Any) -> Iterator[dict[str, Any]]:
    """Records the arguments of `prepare_latents` by name."""
    prepare = pipe.prepare_latents
    # The class has the names: a method that a user put in its place may take `*args`.
    own = getattr(type(pipe), "prepare_latents", None)
    signature = inspect.signature(prepare if own is None else functools.partial(own, pipe))
    arguments: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> Any:
        arguments.update(signature.bind(*args, **kwargs).arguments)
        return prepare(*args, **kwargs)

    with replaced_attribute(pipe, "prepare_latents", record):
        yield arguments
