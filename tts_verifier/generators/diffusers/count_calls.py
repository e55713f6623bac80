"""Counts what a pipeline runs: denoiser evaluations and passes of the VAE, one image each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def denoiser(pipe: Any) -> Any:
    """Returns the network that is evaluated at every step, None if it has another name."""
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


@contextmanager
def counted(pipe: Any) -> Iterator[dict[str, int]]:
    """Counts the rows that go through the denoiser and the VAE meanwhile.

    Yields:
        "denoiser" and "vae" (encodings and decodings) -> rows so far.
    """
    rows = {"denoiser": 0, "vae": 0}
    vae = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    parts = [
        ("denoiser", denoiser(pipe)),
        ("vae", getattr(vae, "encoder", None)),
        ("vae", getattr(vae, "decoder", None)),
    ]

    def count(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else next(iter(kwargs.values()))
            rows[name] += len(first)

        return hook

    hooks = [
        module.register_forward_pre_hook(count(name), with_kwargs=True)
        for name, module in parts
        if module is not None
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()
