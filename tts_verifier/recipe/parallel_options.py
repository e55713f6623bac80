"""The section `parallel` of a recipe: how a run is divided among processes, GPUs and machines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from typing import Final

from tts_verifier.errors import InputError, suggestion

ENGINES: Final[Mapping[str, str]] = {
    "loky": "tts_verifier.parallel.engines.loky_engine:LokyEngine",
    "ray": "tts_verifier.parallel.engines.ray_engine:RayEngine",
    "dask": "tts_verifier.parallel.engines.dask_engine:DaskEngine",
}
"""Name -> "module:class"; a module is imported when its engine is opened."""
_SCHEMES: Final[Mapping[str, tuple[str, ...]]] = {
    # `ray://` is Ray's client, which has no such actors.
    "ray": (),
    "dask": ("tcp", "tls", "ws", "wss", "ucx", "ucxx"),
}
_LIKE_A_NUMBER: Final = re.compile(r"[-+]?[\d._]+")


@dataclass(frozen=True, slots=True)
class ParallelOptions:
    """How a run is distributed. None of it decides an image, so all may change on resume.

    Raises:
        InputError: a value is not usable.
    """

    engine: str = "loky"
    """`loky` on one machine, `ray` on one or a cluster, `dask` where a Dask cluster exists."""
    workers: int | None = None
    """Processes that run shards. None = one for each `gpus` GPUs, or for each core without GPUs;
    with dask and an address, all workers of the cluster."""
    gpus: int | None = None
    """GPUs of a worker: 2 = generator and verifier apart. None = 1 where there are GPUs, else 0."""
    shard: int | None = None
    """Prompts in a shard, fixed by the first start. None = up to 256, and fewer where that would
    leave workers without a shard."""
    address: str | None = None
    """Of a cluster: `HOST:PORT` for ray, `tcp://HOST:PORT` for dask. None = this machine."""
    timeout: int | None = None
    """Seconds without a new row after which a worker ends itself, as if it had died. Loading the
    parts is not limited. None = no limit."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(
                f"Unknown engine {self.engine!r}. {suggestion(str(self.engine), ENGINES)}",
                argument="engine",
            )
        for name, least in (("workers", 1), ("gpus", 0), ("shard", 1), ("timeout", 1)):
            value = getattr(self, name)
            # bool is a subclass of int.
            if value is not None and (type(value) is not int or value < least):
                raise InputError(
                    f"{name} must be a whole number, {least} or more, got {value!r}. "
                    "Leave it out for the default.",
                    argument=name,
                )
        if self.timeout is not None and self.timeout > TIMEOUT_MAX:
            raise InputError(
                f"timeout must be at most {TIMEOUT_MAX:.0f} seconds, got {self.timeout}. Leave it "
                "out for no limit.",
                argument="timeout",
            )
        if self.address is not None:
            self._check_address(self.address)

    def _check_address(self, address: str) -> None:
        if self.engine == "loky":
            raise InputError(
                f"loky works on this machine alone and takes no address, got {address!r}. Use "
                "engine: ray or dask, or leave out address.",
                argument="address",
            )
        scheme, _, place = address.rpartition("://")
        host, _, port = place.rpartition(":")
        right = host and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
        if not right or (scheme and scheme not in _SCHEMES[self.engine]):
            form = "HOST:PORT, such as 10.0.0.1:6379"
            if self.engine == "dask":
                form = "tcp://HOST:PORT, such as tcp://10.0.0.1:8786"
            raise InputError(f"address must be {form}, got {address!r}.", argument="address")


def overrides_of(option: str) -> tuple[str, ...]:
    """Returns what the value of `--parallel` sets, as overrides of a recipe.

    Args:
        option: an engine, a number of workers, or the override that came next, which a command
            line takes for the option's value.
    """
    if "=" in option:
        return ("parallel.engine=loky", option)
    return (
        f"parallel.{'workers' if _LIKE_A_NUMBER.fullmatch(option.strip()) else 'engine'}={option}",
    )
