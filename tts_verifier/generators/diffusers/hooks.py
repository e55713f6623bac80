"""Hooks on a pipeline for the time of one call: replaced attributes, and counts of what ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


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


def denoiser_of(pipe: Any) -> Any:
    """Returns the network that is evaluated at every step, None if it has an unknown name."""
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


@dataclass(slots=True, eq=False)
class RowCounts:
    """How many rows went through the networks of a pipeline; one image is one row."""

    denoiser: int = 0
    """Rows through the denoiser; classifier-free guidance doubles them."""
    vae: int = 0
    """Rows through the encoder and the decoder of the VAE."""


@contextmanager
def counted_rows(pipe: Any) -> Iterator[RowCounts]:
    """Counts the rows that go through the denoiser and the VAE inside the `with` block."""
    counts = RowCounts()
    # Kandinsky names its autoencoder `movq`.
    vae = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    # The parts of the VAE and not the VAE itself: pipelines call `encode` and `decode`, which
    # bypass the forward hooks of the whole module.
    modules = [
        ("denoiser", denoiser_of(pipe)),
        ("vae", getattr(vae, "encoder", None)),
        ("vae", getattr(vae, "decoder", None)),
    ]
    hooks = [
        module.register_forward_pre_hook(_row_counter(counts, name), with_kwargs=True)
        for name, module in modules
        if module is not None
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _row_counter(counts: RowCounts, name: str) -> Callable[..., None]:
    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Some pipelines pass the latents by name only.
        batch = args[0] if args else next(iter(kwargs.values()))
        setattr(counts, name, getattr(counts, name) + len(batch))

    return count
