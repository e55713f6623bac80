"""Runs a part of a denoising schedule: from step `start` to step `stop` of all steps.

A stand-in replaces the pipeline's scheduler for one call. The pipeline sets up its whole schedule
as usual, timestep shift included, and then sees only the steps from `start` to `stop`. A resumed
candidate therefore takes exactly the steps of an uninterrupted one, whatever the shift is, and the
pipeline needs neither a `sigmas` argument nor a callback. At its last step the stand-in sets the
latents aside and returns the estimate of x0 instead, which the pipeline decodes by its own means:
the preview.

All formulas are for a noisy x = a x0 + s e with e ~ N(0, 1). (a, s) is (1 - sigma, sigma) for flow
matching (Lipman et al., 2023), (sqrt(abar), sqrt(1 - abar)) for DDIM (Song et al., 2021) and
(1, sigma) for Euler steps (Karras et al., 2022).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

RESUMABLE_SCHEDULERS: Final = (
    "FlowMatchEulerDiscreteScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
)
"""Schedulers whose step depends on the latents alone; others keep a history of earlier steps."""

STEP_DEPENDENT_ARGUMENTS: Final = (
    "eta",
    "skip_guidance_layers",
    "cfg_trunc_ratio",
    "control_guidance_start",
    "denoising_start",
    "denoising_end",
    "callback_on_step_end",
    "callback",
)
"""Arguments with which a pipeline adds noise of its own, or counts the steps of the call."""


class NoiseLevel(NamedTuple):
    """How noisy x = a x0 + s e is."""

    a: float
    """The factor of the clean x0."""
    s: float
    """The factor of the noise e."""


def resume_problem(pipe: Any, call: Mapping[str, Any]) -> str:
    """Says why a pipeline, called this way, cannot stop early and resume; empty if it can."""
    scheduler: Any = getattr(pipe, "scheduler", None)
    name = type(scheduler).__name__
    if name not in RESUMABLE_SCHEDULERS:
        return f"{name} cannot be resumed; {', '.join(RESUMABLE_SCHEDULERS)} can"
    if ignores_seeds(scheduler):
        return f"{name} with stochastic_sampling ignores the seeds of the candidates"
    if scheduler.config.get("invert_sigmas"):
        return f"{name} with invert_sigmas is not supported"
    # One number, or a list with one for each of several ControlNets.
    guidance_ends = np.atleast_1d(call.get("control_guidance_end") or 1.0)
    ends_early = ["control_guidance_end"] if (guidance_ends != 1).any() else []
    if names := [name for name in STEP_DEPENDENT_ARGUMENTS if call.get(name)] + ends_early:
        return f"{', '.join(names)} in its call changes the steps, so a resumed image would differ"
    return ""


def ignores_seeds(scheduler: Any) -> bool:
    """Says whether a scheduler adds noise that does not come from the candidates' seeds."""
    return bool(scheduler.config.get("stochastic_sampling"))


def noise_levels(scheduler: Any) -> list[NoiseLevel]:
    """Returns the noise levels of a scheduler with timesteps set: before each step, and at the end.

    The list is one longer than the number of steps.
    """
    if type(scheduler).__name__ == "DDIMScheduler":
        abars = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
        # Its last step does not always end at abar = 1: a config may end it at the first abar.
        abars.append(float(scheduler.final_alpha_cumprod))
        return [NoiseLevel(abar**0.5, (1 - abar) ** 0.5) for abar in abars]
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    flow = type(scheduler).__name__.startswith("FlowMatch")
    return [NoiseLevel(1 - sigma if flow else 1.0, sigma) for sigma in sigmas]


def sample_forward_kernel(
    latents: torch.Tensor, level: NoiseLevel, *, target: NoiseLevel, noise: torch.Tensor
) -> torch.Tensor:
    """Samples the forward kernel q(x_t | x_s): noises latents to a higher level, exactly.

    x_t = k x_s + sqrt(s_t^2 - k^2 s_s^2) noise, with k = a_t / a_s. The result has the marginal
    distribution of x0 noised to the target level at once.

    Args:
        latents: x_s.
        level: (a_s, s_s), the present level.
        target: (a_t, s_t), the noisier one.
        noise: N(0, 1), of the latents' shape.
    """
    k = target.a / level.a
    # Rounding may make the difference slightly negative where both levels are the same.
    added_noise = max(target.s**2 - (k * level.s) ** 2, 0.0) ** 0.5
    noisier: torch.Tensor = latents * k + noise * added_noise
    return noisier


@dataclass(eq=False)
class ScheduleSlice:
    """Steps `start` to `stop` of a schedule, for the candidates of one batch."""

    start: int
    """The first step."""
    stop: int
    """The step after the last one."""
    levels: Sequence[NoiseLevel]
    """The noise levels of the whole schedule."""
    etas: Sequence[float] = ()
    """For each row, the share of fresh noise in the noise that is left after a step.

    With e the noise that the network finds in x, x' = a' x0 + s' (sqrt(1 - eta^2) e + eta fresh).
    0 is the scheduler's own step, 1 replaces all the noise.
    """
    generators: Sequence[torch.Generator] = ()
    """For each row, the random generator of its fresh noise."""
    restore: Callable[[torch.Tensor, NoiseLevel], torch.Tensor] | None = None
    """Puts a part of the latents back after every step: (latents, their level) -> latents."""
    final_latents: torch.Tensor | None = field(default=None, init=False)
    """The latents after the last step, if the slice ends before the schedule does."""

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole schedule."""
        return len(self.levels) - 1

    @contextmanager
    def applied_to(self, pipe: Any) -> Iterator[None]:
        """Replaces the scheduler of a pipeline inside the `with` block."""
        own = pipe.scheduler
        pipe.scheduler = self._stand_in(own)
        try:
            yield
        finally:
            pipe.scheduler = own

    def _stand_in(self, scheduler: Any) -> Any:
        # A copy: if the call fails halfway, the user's scheduler has not changed.
        stand_in = copy.deepcopy(scheduler)
        set_timesteps, step = stand_in.set_timesteps, stand_in.step
        steps = iter(range(self.start, self.stop))

        # Pipelines inspect the signatures of both methods, which `wraps` passes on.
        @functools.wraps(set_timesteps)
        def set_cut_timesteps(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            cut_schedule(stand_in, self.start, self.stop)

        @functools.wraps(step)
        def sliced_step(output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            result = step(output, timestep, sample, *args, **kwargs)
            values = result if isinstance(result, tuple) else result.to_tuple()
            s = self.levels[i := next(steps)].s
            # Only flow matching returns no x0; there x = (1 - s) x0 + s e and output = e - x0.
            x0 = values[1] if len(values) > 1 else sample.float() - s * output.float()
            after = self._after_step(i, sample, x0, values[0])
            if isinstance(result, tuple):
                return (after, *result[1:])
            result.prev_sample = after
            return result

        stand_in.set_timesteps, stand_in.step = set_cut_timesteps, sliced_step
        return stand_in

    def _after_step(self, i: int, before: Any, x0: Any, after: Any) -> Any:
        """Returns what the pipeline gets after step i: latents, or x0 for a preview."""
        # Without noise left there is none to replace, and eta has no effect.
        if self.levels[i + 1].s > 0:
            after = self._with_fresh_noise(i, before, x0, after)
        if self.restore is not None:
            after = self.restore(after, self.levels[i + 1])
        if i + 1 < self.stop or self.stop == self.total_steps:
            return after
        self.final_latents = after
        return x0.to(after.dtype)

    def _with_fresh_noise(self, i: int, before: Any, x0: Any, after: Any) -> Any:
        """Returns the latents after step i, with a share `eta` of fresh noise in each row."""
        import torch

        level, next_level = self.levels[i], self.levels[i + 1]
        rows = [row for row, eta in enumerate(self.etas) if eta > 0]
        if rows:
            # Rows are written in place below, and the scheduler may still refer to its result.
            after = after.clone()
        for row in rows:
            eta = self.etas[row]
            # On the CPU, where a seed gives the same numbers on every machine.
            fresh = torch.randn(after[row].shape, generator=self.generators[row]).to(after.device)
            predicted = (before[row].float() - level.a * x0[row].float()) / level.s
            mixed = (1 - eta**2) ** 0.5 * predicted + eta * fresh
            after[row] = next_level.a * x0[row].float() + next_level.s * mixed
        return after


def cut_schedule(scheduler: Any, start: int, stop: int) -> None:
    """Removes all steps but those from `start` to `stop` from a scheduler with timesteps set."""
    scheduler.timesteps = scheduler.timesteps[start:stop]
    if hasattr(scheduler, "sigmas"):
        # One more than the steps: the last sigma is the level that the last step ends at.
        scheduler.sigmas = scheduler.sigmas[start : stop + 1]


def initial_scale(scheduler: Any, start: int, stop: int) -> float:
    """Returns the factor by which a pipeline multiplies the latents that it is given."""
    part = copy.deepcopy(scheduler)
    # Euler's factor depends on the largest sigma that is left.
    cut_schedule(part, start, stop)
    return float(getattr(part, "init_noise_sigma", 1.0))
