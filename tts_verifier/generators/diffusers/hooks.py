"""Hooks on a pipeline for the time of one call: its lock, replaced attributes, what ran.

A call replaces parts of the pipeline, such as its scheduler, so threads take turns. The lock
belongs to the denoiser and not to a wrapper: wrappers, generators and pipelines may share it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any, Final
from weakref import WeakKeyDictionary

from tts_verifier.errors import UnsupportedError
from tts_verifier.types import report_step


@dataclass(slots=True, eq=False)
class _PipelineLock:
    """Who may call a pipeline now."""

    lock: Any = field(default_factory=RLock)
    """Held by the thread whose call runs; the same thread may take it again."""
    calling: bool = False
    """Whether that thread is inside the pipeline, so that it can only come from a callback."""


_LOCKS: Final[WeakKeyDictionary[Any, _PipelineLock]] = WeakKeyDictionary()
_LOCKS_GUARD: Final = Lock()


def _lock_of(pipe: Any) -> _PipelineLock:
    network = denoiser_of(pipe)
    # Not an attribute of the pipeline, which could then be neither copied nor pickled.
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(pipe if network is None else network, _PipelineLock())


@contextmanager
def exclusive(*pipes: Any) -> Iterator[None]:
    """Lets other threads wait that want one of the pipelines; None stands for no pipeline."""
    locks = {id(own): own for own in (_lock_of(pipe) for pipe in pipes if pipe is not None)}
    with ExitStack() as stack:
        # In the same order in every thread, or two could wait for each other for ever.
        for _, own in sorted(locks.items()):
            stack.enter_context(own.lock)
        yield


def refuse_inside_its_call(pipe: Any) -> None:
    """Raises UnsupportedError if this thread, which has the lock, is inside a call of `pipe`."""
    if _lock_of(pipe).calling:
        raise UnsupportedError(
            "A pipeline cannot generate from within its own callback: it has one scheduler, which "
            "is in use. Generate once the outer call has returned, or with another pipeline."
        )


@contextmanager
def inside_its_call(pipe: Any) -> Iterator[None]:
    """Marks a pipeline as called inside the `with` block."""
    own = _lock_of(pipe)
    own.calling = True
    try:
        yield
    finally:
        own.calling = False


def take_interrupt(pipe: Any) -> bool:
    """Says whether somebody set `pipe._interrupt` to stop a call, as in diffusers; clears it."""
    interrupted = bool(getattr(pipe, "_interrupt", False))
    if interrupted:
        pipe._interrupt = False
    return interrupted


class CountedStep:
    """Counts the calls of a scheduler's `step`, and reports each of them.

    A copy of the scheduler has a step of its own. Used by the thread that calls the pipeline.

    Args:
        own: the scheduler's method.
        total: returns how many steps the call takes.

    Attributes:
        taken: how many steps were taken.
    """

    def __init__(self, own: Callable[..., Any], total: Callable[[], int]) -> None:
        # Pipelines inspect the signature of the method, which `update_wrapper` passes on.
        functools.update_wrapper(self, own)
        self._own, self._total = own, total
        self.taken = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes a step."""
        result = self._own(*args, **kwargs)
        self.taken += 1
        report_step(self.taken, max(self._total(), self.taken))
        return result


@contextmanager
def counted_steps(pipe: Any) -> Iterator[CountedStep]:
    """Counts the steps that a pipeline takes inside the `with` block."""
    scheduler = getattr(pipe, "scheduler", None)
    step = CountedStep(getattr(scheduler, "step", lambda: None), lambda: steps_of_call(pipe))
    if scheduler is None:
        yield step
        return
    with replaced_attribute(scheduler, "step", step):
        yield step


def steps_of_call(pipe: Any) -> int:
    """Returns how many steps the last call of a pipeline was to take, at least 1."""
    timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", ())
    return int(getattr(pipe, "_num_timesteps", 0) or len(timesteps) or 1)


@contextmanager
def replaced_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an object another attribute, then restores the one that it had.

    An attribute of the class is uncovered again; one that the user set on the instance is set
    again.
    """
    # `getattr` would not tell an attribute of the instance from one of its class.
    before = {name: vars(owner)[name]} if name in vars(owner) else {}
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        vars(owner).update(before)


def denoisers_of(pipe: Any) -> list[Any]:
    """Returns the networks that predict the steps; none if they have unknown names.

    Wan 2.2 has one for its early steps and one for the others, Ideogram 4 one for each side of its
    guidance.
    """
    return _present_parts(pipe, "transformer", "unet", "transformer_2", "unconditional_transformer")


def denoiser_of(pipe: Any) -> Any:
    """Returns the first of `denoisers_of`, None if there is none."""
    return next(iter(denoisers_of(pipe)), None)


def _present_parts(pipe: Any, *names: str) -> list[Any]:
    # Not by truth: a module that `torch.compile` returned has none.
    parts = [getattr(pipe, name, None) for name in names]
    return [part for part in parts if part is not None]


@dataclass(slots=True, eq=False)
class RowCounts:
    """How many rows went through the networks of a pipeline; one image is one row."""

    denoiser: int = 0
    """Rows through all denoisers; classifier-free guidance doubles them."""
    vae: int = 0
    """Rows through the encoder and the decoder of the VAE."""


@contextmanager
def counted_rows(pipe: Any) -> Iterator[RowCounts]:
    """Counts the rows that go through the denoisers and the VAE inside the `with` block."""
    counts = RowCounts()
    # unCLIP, Kandinsky and Stable Cascade denoise an embedding of the image first. The network for
    # the image itself is a `unet`, or the `decoder`.
    networks = denoisers_of(pipe) or _present_parts(pipe, "decoder")
    networks += _present_parts(pipe, "prior", "prior_prior")
    modules = [("denoiser", network) for network in networks]
    # Kandinsky names its autoencoder `movq`.
    for vae in _present_parts(pipe, "vae", "movq")[:1]:
        # Its parts and not the VAE itself: pipelines call `encode` and `decode`, which bypass the
        # forward hooks of the whole module.
        modules += [("vae", part) for part in _present_parts(vae, "encoder", "decoder")]
    hooks = [
        module.register_forward_pre_hook(_row_counter(counts, name), with_kwargs=True)
        for name, module in modules
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _row_counter(counts: RowCounts, name: str) -> Callable[..., None]:
    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        setattr(counts, name, getattr(counts, name) + _rows(args, kwargs))

    return count


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    # Some pipelines pass the latents by name only.
    return len(args[0] if args else next(iter(kwargs.values())))


# -- cached drafts -----------------------------------------------------------------------------


def evaluated_steps(steps: int, interval: int) -> int:
    """Returns in how many of some steps `extrapolated_steps` evaluates the denoiser.

    These are the first one, the third, and every `interval` steps after it.
    """
    return steps if interval == 1 else 1 + len(range(2, steps, interval))


@contextmanager
def extrapolated_steps(pipe: Any, interval: int, rows: RowCounts) -> Iterator[None]:
    """Evaluates the denoisers only every `interval` steps inside the `with` block.

    In the other steps their output is extrapolated from the last two (TaylorSeer, Liu et al., 2025,
    of order 1, by diffusers' own code). Which steps these are depends on their number alone, and
    every row of a batch is extrapolated by itself, so an image does not depend on its batch. Where
    another denoiser takes over, it is extrapolated from the outputs of the one before. Of
    diffusers' other caches, FirstBlockCache and SeaCache decide by means over the batch.

    Args:
        pipe: the pipeline, for one call.
        interval: 1 = evaluate in all steps.
        rows: counts the rows through the denoisers; extrapolated ones are taken off.
    """
    if interval == 1:
        yield
        return
    import torch
    from diffusers.hooks.taylorseer_cache import TaylorSeerState

    networks, scheduler = denoisers_of(pipe), pipe.scheduler
    step = scheduler.step
    states: dict[tuple[int, int], TaylorSeerState] = {}
    output: Any = None
    calls = 0

    @functools.wraps(step)
    def next_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls = 0
        return step(*args, **kwargs)

    def evaluate_or_extrapolate(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal calls, output
        # Guidance may call the denoiser twice in a step, and may end before the last step.
        calls, count = calls + 1, _rows(args, kwargs)
        state = states.setdefault((calls, count), TaylorSeerState(torch.float32))
        state.current_step += 1
        if state.current_step == 0 or (state.current_step - 2) % interval == 0:
            output = forward(*args, **kwargs)
            state.update(_tensors(output))
            return output
        rows.denoiser -= count
        return _with_tensors(output, state.predict())

    with ExitStack() as stack:
        stack.enter_context(replaced_attribute(scheduler, "step", next_step))
        for network in networks:
            forward = network.forward
            called = functools.wraps(forward)(functools.partial(evaluate_or_extrapolate, forward))
            # Not by `apply_taylorseer_cache`, whose hook may replace the `forward` of the module
            # that was given to `torch.compile`, and not of the one that was returned.
            stack.enter_context(replaced_attribute(network, "forward", called))
        yield


def _tensors(output: Any) -> tuple[Any, ...]:
    """Returns the tensors that a denoiser predicts: one, or one for each image."""
    import torch

    first = output if isinstance(output, torch.Tensor) else output[0]
    return tuple(first) if isinstance(first, list) else (first,)


def _with_tensors(output: Any, tensors: list[Any]) -> Any:
    """Returns a denoiser's output with other tensors in it."""
    import torch

    if isinstance(output, torch.Tensor):
        return tensors[0]
    first = tensors if isinstance(output[0], list) else tensors[0]
    return (first,) if isinstance(output, tuple) else type(output)(first)
