"""Initial noise as a function of a proposal and its ancestors, in the pipeline's own layout.

A rehearsal calls the pipeline as a drawing would and stops it at the first evaluation of the
denoiser; what it prepared by then says how its noise is made and what its schedule is.
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
from tts_verifier.generators.diffusers.count_calls import denoiser
from tts_verifier.generators.diffusers.patched import replaced
from tts_verifier.generators.diffusers.schedule import first_scale, levels, renoised
from tts_verifier.types import Draw, Job, LowBand, Near, Trial

if TYPE_CHECKING:
    import torch


class _Prepared(Exception):
    """Ends a rehearsal."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What a pipeline prepares before its first step.

    `pipe`: itself. `arguments`: of its `prepare_latents`, for one picture. `scheduler`: a
    prepared copy.
    """

    pipe: Any
    arguments: Mapping[str, Any]
    scheduler: Any

    def levels(self) -> list[tuple[float, float]]:
        """Returns the noise levels of the whole schedule; see `schedule`."""
        return levels(self.scheduler)

    @property
    def steps(self) -> int:
        """The number of steps of a whole drawing."""
        return len(self.scheduler.timesteps)

    @property
    def scale(self) -> float:
        """What the pipeline multiplies noise by; 1 for most schedulers."""
        return first_scale(self.scheduler, 0, self.steps)

    def latents(self, job: Job, start: int, seed: torch.Generator) -> torch.Tensor:
        """Returns the latents of a job before step `start`, (1, ...).

        Raises:
            InputError: the parent has no state, or the noise cannot be made.
        """
        import torch

        p = job.proposal
        if isinstance(p, Draw):
            return self.noise(p, job.ancestors) * self.scale
        parent = job.ancestors[0]
        if parent.state is None:
            raise InputError(f"Continue needs the state of trial {parent.id}, it has none.")
        latents = torch.from_numpy(parent.state.load()["latents"].copy())[None]
        reached = round(parent.progress * self.steps)
        if start < reached:
            table = self.levels()
            noise = torch.randn(latents.shape, generator=seed)
            latents = renoised(latents, table[reached], then=table[start], noise=noise)
        return latents

    def handed_over(self, latents: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Returns the latents of a batch as the pipeline's argument for steps of its schedule."""
        place = {key: self.arguments[key] for key in ("device", "dtype") if key in self.arguments}
        return latents.to(**place) / first_scale(self.scheduler, start, stop)

    def noise(self, draw: Draw, ancestors: Sequence[Trial]) -> torch.Tensor:
        """Returns the N(0, 1) noise of a drawing, (1, ...) in the pipeline's own layout.

        Raises:
            InputError: the noise cannot be made as the proposal says.
            UnsupportedError: a low band is asked of latents that are not (C, h, w).
        """
        fresh = self._fresh(draw.seed)
        if isinstance(draw.noise, Near):
            parent, r = ancestors[0].proposal, draw.noise.radius
            if not isinstance(parent, Draw) or not 0 < r <= 1:
                raise InputError(
                    "Near needs a parent that was drawn from noise and a radius in (0, 1], got "
                    f"{parent} and {r}."
                )
            old = self.noise(parent, ancestors[1:])
            near: torch.Tensor = (1 - r**2) ** 0.5 * old.float() + r * fresh.float()
            return near.to(fresh.dtype)
        if isinstance(draw.noise, LowBand):
            return self._low_band(fresh, draw.noise)
        return fresh

    def _fresh(self, seed: int) -> torch.Tensor:
        import torch

        changed = {"generator": torch.Generator("cpu").manual_seed(seed), "latents": None}
        made = self.pipe.prepare_latents(**{**self.arguments, **changed})
        latents: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return latents / self.scale

    def _low_band(self, noise: torch.Tensor, band: LowBand) -> torch.Tensor:
        """Replaces the low band of orthonormal Haar steps: 2^level times the blocks' means."""
        import torch
        from torch.nn.functional import avg_pool2d, interpolate

        if noise.ndim != 4:
            raise UnsupportedError(
                f"{type(self.pipe).__name__} packs its latents, so their low band cannot be set."
            )
        block = 2**band.level
        _, channels, height, width = noise.shape
        needed = channels * (height // block) * (width // block)
        if band.level < 1 or height % block or width % block or len(band.coefficients) != needed:
            raise InputError(
                f"A low band of level {band.level} has {needed} coefficients for noise of shape "
                f"{tuple(noise.shape[1:])}, whose sides 2^level must divide; got "
                f"{len(band.coefficients)}."
            )
        means = avg_pool2d(noise.float(), block)
        wanted = torch.tensor(band.coefficients, device=noise.device).reshape(means.shape) / block
        return (noise.float() + interpolate(wanted - means, scale_factor=block)).to(noise.dtype)


def problem(pipe: Any) -> str:
    """Says why a pipeline cannot be given latents, empty if it can."""
    known = inspect.signature(type(pipe).__call__).parameters
    if "latents" not in known:
        return "its call takes no `latents`"
    if "strength" in known:
        return "it starts from a picture, of which its call takes the `strength` of change"
    if not hasattr(pipe, "prepare_latents") or denoiser(pipe) is None:
        return "it has no `prepare_latents`, or no `transformer` or `unet`"
    return ""


def rehearse(pipe: Any, call: Mapping[str, Any]) -> Rehearsal:
    """Lets a pipeline prepare one picture; `call` has one prompt.

    Raises:
        UnsupportedError: it cannot be given latents.
    """
    if why := problem(pipe):
        raise UnsupportedError(f"{type(pipe).__name__} draws from its own noise only: {why}.")

    def stop(*_: Any) -> None:
        raise _Prepared

    # Ahead of the hook that counts evaluations: there is none.
    hook = denoiser(pipe).register_forward_pre_hook(stop, prepend=True)
    try:
        with _noted(pipe) as arguments:
            pipe(**call)
    except _Prepared:
        pass
    finally:
        hook.remove()
    return Rehearsal(pipe, arguments, copy.deepcopy(pipe.scheduler))


@contextmanager
def _noted(pipe: Any) -> Iterator[dict[str, Any]]:
    make = pipe.prepare_latents
    # Of the class: a user's own method may take whatever it is given.
    own = getattr(type(pipe), "prepare_latents", None)
    signature = inspect.signature(make if own is None else functools.partial(own, pipe))
    arguments: dict[str, Any] = {}

    def noting(*args: Any, **kwargs: Any) -> Any:
        arguments.update(signature.bind(*args, **kwargs).arguments)
        return make(*args, **kwargs)

    with replaced(pipe, "prepare_latents", noting):
        yield arguments
