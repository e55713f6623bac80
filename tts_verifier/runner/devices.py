"""Places generator and verifier: on two devices, together on one, or in turns on one.

Both stay on the device if they fit. If they do not, one waits in host memory while the other
works, and they change places once for many images. A part that takes turns must implement
`interfaces.Movable`. Runs at the same time cannot share such a part, because one would move it
away while another uses it. Nor do they wait for each other: a caller may hold a pipeline for ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Final, Literal

from tts_verifier.errors import RunError, RunWarning
from tts_verifier.interfaces import Placed, is_movable
from tts_verifier.loading.memory import SPARE, free_bytes
from tts_verifier.runner.setup import RunSetup

PlacementPlan = Literal["as placed", "apart", "together", "in turns"]
_HOST: Final = "cpu"


@dataclass(frozen=True, slots=True)
class PartPlacement:
    """Where a generator or verifier is to compute."""

    device: str | None
    """The device; None = unknown."""
    missing: int = 0
    """Bytes of its weights that are not on the device yet."""
    movable: bool = False
    """Whether the runner may move it."""


def plan_placement(
    generator: PartPlacement, verifier: PartPlacement, free: int | None
) -> PlacementPlan:
    """Decides how two parts share their devices.

    Args:
        generator: the generator's placement.
        verifier: the verifier's.
        free: bytes that are free on the generator's device; None = taken to be enough.

    Returns:
        "apart": on two devices. "together": both fit on one. "in turns": both are on one and do
        not fit. "as placed": a device is unknown, or they do not fit and one must not be moved.
    """
    if generator.device is None or verifier.device is None:
        return "as placed"
    if generator.device != verifier.device:
        return "apart"
    if free is None or generator.missing + verifier.missing + SPARE <= free:
        return "together"
    return "in turns" if generator.movable and verifier.movable else "as placed"


def placement_of(part: object) -> PartPlacement:
    """Returns the placement of a generator or verifier, as it describes itself."""
    device = target_device(part)
    if not is_movable(part):
        return PartPlacement(device)
    # Read once: it counts the weights one by one.
    nbytes = part.nbytes
    missing = 0 if device in (None, str(part.device)) else nbytes or 0
    return PartPlacement(device, missing, nbytes is not None)


def target_device(part: object) -> str | None:
    """Returns where a generator or verifier is to compute, None if it does not say."""
    if is_movable(part) and part.home is not None:
        return part.home
    return current_device(part)


def current_device(part: object) -> str | None:
    """Returns where a generator or verifier is now, None if it does not say."""
    if not isinstance(part, Placed) or part.device is None:
        return None
    return str(part.device)


def devices_of(part: object) -> list[str]:
    """Returns all devices that a generator or verifier computes on; none if it does not say."""
    # A verifier may have a copy of its model on each of several devices.
    several = getattr(part, "devices", None)
    if isinstance(several, (list, tuple)) and len(several) > 1:
        return [str(device) for device in several]
    target = target_device(part)
    return [] if target is None else [target]


class DevicePlacement:
    """Moves generator and verifier as the plan demands.

    Belongs to one run, and to the thread that runs its loop.

    Args:
        setup: the parts of the run.
    """

    def __init__(self, setup: RunSetup) -> None:
        self._generator, self._verifier = setup.generator, setup.verifier
        self._targets = [target_device(part) for part in self._parts]
        self._at_start = [current_device(part) for part in self._parts]
        places = [",".join(devices_of(part)) or None for part in self._parts]
        self.devices = dict(zip(("generate", "verify"), places, strict=True))
        """Where "generate" and "verify" compute; None where a part does not say."""
        self.plan = _plan_for(*self._parts)
        self.overlap = self.plan != "in turns" and self._wants_overlap(setup.overlap)
        """Whether a batch is verified while the next one is generated."""
        self.moves = 0
        """How many moves there were."""

    @property
    def generates_ahead(self) -> bool:
        """Whether a batch may be generated before the last one is verified."""
        return self.overlap or self.plan == "in turns"

    def to_generate(self) -> None:
        """Brings the generator to its device; if they take turns, the verifier leaves first."""
        self._bring(0, other=1)

    def to_verify(self) -> None:
        """Brings the verifier to its device; if they take turns, the generator leaves first."""
        self._bring(1, other=0)

    def restore(self) -> None:
        """Brings parts that took turns back to where they were at the start."""
        if self.plan == "in turns":
            # A part that returns to host memory goes first: it makes room for the other.
            order = sorted((0, 1), key=lambda side: self._at_start[side] != _HOST)
            for side in order:
                self._move(side, self._at_start[side])

    def excludes(self, other: DevicePlacement) -> bool:
        """Returns whether two runs must not be under way at once: one moves what the other uses."""
        # Two generators may have one pipeline, which is what moves.
        mine, theirs = ({id(getattr(p, "pipe", p)) for p in run._parts} for run in (self, other))
        return bool(mine & theirs) and "in turns" in (self.plan, other.plan)

    @property
    def _parts(self) -> tuple[object, object]:
        return self._generator, self._verifier

    def _wants_overlap(self, option: bool | None) -> bool:
        if option is not None:
            return option
        # Overlap helps on one GPU too: a verifier's small kernels leave much of it idle.
        on_gpu = str(self.devices["generate"]).startswith("cuda")
        return self.plan == "apart" or (self.plan == "together" and on_gpu)

    def _bring(self, side: int, *, other: int) -> None:
        if self.plan == "in turns":
            # The other part leaves first: there is no room for both, not even for a moment.
            self._move(other, _HOST)
        part = self._parts[side]
        # A part that did not fit when it was loaded may fit now; it then moves in and stays.
        has_home = self.plan == "together" and is_movable(part) and part.home is not None
        if has_home or self.plan == "in turns":
            self._move(side, self._targets[side])

    def _move(self, side: int, device: str | None) -> None:
        part = self._parts[side]
        if device is not None and is_movable(part) and str(part.device) != device:
            part.to(device)
            self.moves += 1


_ACTIVE: Final[list[DevicePlacement]] = []
"""The placements of all runs that are under way; the lock guards it."""
_ACTIVE_LOCK: Final = Lock()


@contextmanager
def placed(setup: RunSetup) -> Iterator[DevicePlacement]:
    """Plans the devices of a run; parts that left theirs return when it ends, even with an error.

    Raises:
        RunError: a run that is under way moves one of the parts, or this one would move its.
    """
    _warn_if_waiting(setup.judge)
    with _ACTIVE_LOCK:
        placement = DevicePlacement(setup)
        if any(placement.excludes(other) for other in _ACTIVE):
            raise RunError(
                "Runs that are under way at once, in several threads or inside each other, cannot "
                "share a generator or verifier that takes turns on a device, because each would "
                "move it away from the other. Run them one after the other, or load the verifier "
                "smaller or onto another device, so that both fit."
            )
        _ACTIVE.append(placement)
    try:
        yield placement
    finally:
        try:
            placement.restore()
        finally:
            with _ACTIVE_LOCK:
                _ACTIVE.remove(placement)


def _warn_if_waiting(judge: object) -> None:
    """Warns if the held-out judge is not on its device: the runner does not move it."""
    if is_movable(judge) and judge.home not in (None, str(judge.device)):
        warnings.warn(
            f"The held-out judge did not fit on {judge.home} and runs on {judge.device}, which is "
            "slow: only generator and verifier take turns. Load it first with device=…, or add its "
            "scores to the finished run with `tts-run --rejudge`.",
            RunWarning,
            stacklevel=2,
        )


def _plan_for(generator: object, verifier: object) -> PlacementPlan:
    """Returns the plan; counts the bytes of weights, which takes a while, only if it must."""
    device, places = target_device(generator), devices_of(verifier)
    if device is None or device not in places:
        return plan_placement(PartPlacement(device), PartPlacement(target_device(verifier)), None)
    free = free_bytes(device)
    if len(places) > 1:
        # Its copies stay where they are; one of them is beside the generator.
        return plan_placement(placement_of(generator), PartPlacement(device), free)
    # Where both are on the device already, no bytes are missing, and none need be counted.
    if all(current_device(part) == device for part in (generator, verifier)):
        plan = plan_placement(PartPlacement(device), PartPlacement(device), free)
        if plan == "together":
            return plan
    return plan_placement(placement_of(generator), placement_of(verifier), free)
