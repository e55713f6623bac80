"""Part of a drawing: a stand-in that gives a pipeline a cut of its scheduler's own schedule.

The pipeline makes its whole schedule as ever, shift and all, and is then shown the steps from
`start` to `stop` only. So a drawing carried on takes exactly the steps of an uninterrupted
one, whatever the shift, and neither `sigmas` nor a callback is asked of the pipeline. At the
last step the stand-in keeps the latents aside and hands out the estimate of x0, which the
pipeline then decodes by its own means: the preview.

All formulas are of a noisy x = a x0 + s e with e ~ N(0, 1): (a, s) = (1 - sigma, sigma) for
flow matching (Lipman et al., 2023), (sqrt(abar), sqrt(1 - abar)) for DDIM (Song et al., 2021)
and (1, sigma) for Euler steps of Karras et al. (2022).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import torch

RESUMABLE: Final = (
    "FlowMatchEulerDiscreteScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
)
"""Schedulers whose step depends on nothing but the latents; others carry a history."""

BY_STEP: Final = (
    "eta",
    "skip_guidance_layers",
    "cfg_trunc_ratio",
    "control_guidance_start",
    "denoising_start",
    "denoising_end",
    "callback_on_step_end",
    "callback",
)
"""Arguments by which pipelines add noise of their own, or count the steps of the call."""


def problem(pipe: Any, call: Mapping[str, Any]) -> str:
    """Says why a pipeline so called cannot stop and carry on a drawing, empty if it can."""
    scheduler: Any = getattr(pipe, "scheduler", None)
    name = type(scheduler).__name__
    if name not in RESUMABLE:
        return f"{name} cannot be resumed; {', '.join(RESUMABLE)} can"
    if unseeded(scheduler):
        return f"{name} with stochastic_sampling ignores the seeds of the candidates"
    if scheduler.config.get("invert_sigmas"):
        return f"{name} with invert_sigmas is not known"
    ends = np.atleast_1d(call.get("control_guidance_end") or 1.0)
    early = ["control_guidance_end"] if (ends != 1).any() else []
    if found := [name for name in BY_STEP if call.get(name)] + early:
        return f"{', '.join(found)} in its call would not be the same in a drawing carried on"
    return ""


def unseeded(scheduler: Any) -> bool:
    """Says whether a scheduler adds noise that no candidate's seed decides."""
    return bool(scheduler.config.get("stochastic_sampling"))


def levels(scheduler: Any) -> list[tuple[float, float]]:
    """Returns (a, s) before every step of a prepared scheduler and after the last."""
    if type(scheduler).__name__ == "DDIMScheduler":
        kept = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
        kept.append(float(scheduler.final_alpha_cumprod))
        return [(k**0.5, (1 - k) ** 0.5) for k in kept]
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    flow = type(scheduler).__name__.startswith("FlowMatch")
    return [(1 - sigma if flow else 1.0, sigma) for sigma in sigmas]


def renoised(
    latents: torch.Tensor,
    now: tuple[float, float],
    *,
    then: tuple[float, float],
    noise: torch.Tensor,
) -> torch.Tensor:
    """Goes back from the level `now` to the noisier `then` by the exact forward kernel.

    x_then = k x_now + sqrt(s_then^2 - k^2 s_now^2) noise, with k = a_then / a_now: the same
    marginal as if x0 had been noised to `then` at once.
    """
    k = then[0] / now[0]
    spread = max(then[1] ** 2 - (k * now[1]) ** 2, 0.0) ** 0.5
    earlier: torch.Tensor = latents * k + noise * spread
    return earlier


@dataclass(eq=False)
class Span:
    """Steps `start` to `stop` of a drawing, for the rows of one batch.

    `levels`: of the whole schedule. `etas`: of every row; the share of fresh noise in the
    noise that is left after a step: with e the noise that the network sees in x,
    x' = a' x0 + s' (sqrt(1 - eta^2) e + eta fresh). 0 is the scheduler's own step, 1 draws
    all the noise anew. `seeds`: every row's own generator. `kept`: what puts a part of the
    latents back after every step, given them and their level. `latents`: those after the
    last step, for a state.
    """

    start: int
    stop: int
    levels: Sequence[tuple[float, float]]
    etas: Sequence[float] = ()
    seeds: Sequence[torch.Generator] = ()
    kept: Callable[[torch.Tensor, tuple[float, float]], torch.Tensor] | None = None
    latents: torch.Tensor | None = field(default=None, init=False)

    @property
    def whole(self) -> int:
        """The number of steps of a whole drawing."""
        return len(self.levels) - 1

    @contextmanager
    def shown_to(self, pipe: Any) -> Iterator[None]:
        """Gives a pipeline the stand-in, for one call."""
        own = pipe.scheduler
        pipe.scheduler = self._stand_in(own)
        try:
            yield
        finally:
            pipe.scheduler = own

    def _stand_in(self, scheduler: Any) -> Any:
        stand_in = copy.deepcopy(scheduler)
        set_timesteps, step = stand_in.set_timesteps, stand_in.step
        places = iter(range(self.start, self.stop))

        @functools.wraps(set_timesteps)
        def cut_timesteps(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            cut(stand_in, self.start, self.stop)

        @functools.wraps(step)
        def watched_step(output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            result = step(output, timestep, sample, *args, **kwargs)
            values = result if isinstance(result, tuple) else result.to_tuple()
            s = self.levels[place := next(places)][1]
            x0 = values[1] if len(values) > 1 else sample.float() - s * output.float()
            after = self._after(place, sample, x0, values[0])
            if isinstance(result, tuple):
                return (after, *result[1:])
            result.prev_sample = after
            return result

        stand_in.set_timesteps, stand_in.step = cut_timesteps, watched_step
        return stand_in

    def _after(self, i: int, before: Any, x0: Any, after: Any) -> Any:
        """Returns what the pipeline gets after step i: latents, or x0 for a preview."""
        import torch

        (a, s), (a_next, s_next) = self.levels[i], self.levels[i + 1]
        rows = [row for row, eta in enumerate(self.etas) if eta > 0 and s_next > 0]
        if rows:
            after = after.clone()
        for row in rows:
            eta, seed = self.etas[row], self.seeds[row]
            fresh = torch.randn(after[row].shape, generator=seed).to(after.device)
            seen = (before[row].float() - a * x0[row].float()) / s
            mixed = (1 - eta**2) ** 0.5 * seen + eta * fresh
            after[row] = a_next * x0[row].float() + s_next * mixed
        if self.kept is not None:
            after = self.kept(after, (a_next, s_next))
        if i + 1 < self.stop or self.stop == self.whole:
            return after
        self.latents = after
        return x0.to(after.dtype)


def cut(scheduler: Any, start: int, stop: int) -> None:
    """Leaves a prepared scheduler the steps from `start` to `stop` only."""
    scheduler.timesteps = scheduler.timesteps[start:stop]
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas[start : stop + 1]


def first_scale(scheduler: Any, start: int, stop: int) -> float:
    """Returns the factor by which a pipeline multiplies the latents it is given."""
    part = copy.deepcopy(scheduler)
    cut(part, start, stop)
    return float(getattr(part, "init_noise_sigma", 1.0))
