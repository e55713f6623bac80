"""Where generator and verifier compute: side by side, in turns on one device, or on two.

Both are left where they are if they fit. Where they do not, one waits in host memory while the
other works, and they change places once for many pictures. A part may say where it computes
(`device`); one that may also be moved has `nbytes`, the bytes of its weights, or None where it
must stay, `to(device)`, and, if it waits elsewhere at first, `home`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final, Literal

from tts_verifier.errors import RunWarning
from tts_verifier.memory import SPARE, free_bytes
from tts_verifier.runner.setup import Search

Plan = Literal["as placed", "apart", "together", "in turns"]

HELD: Final = 256
"""Pictures that wait to be judged, at most, where the parts take turns: some minutes' work
for a move's seconds, and less than a gigabyte at 1024 x 1024."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a part is to compute, None = unknown; bytes of it that are not there yet; whether it
    may be moved."""

    device: str | None
    missing: int = 0
    movable: bool = False


def plan(generator: Seat, verifier: Seat, free: int | None) -> Plan:
    """Decides how two parts share their devices.

    Args:
        generator: where, and what is missing.
        verifier: likewise.
        free: bytes that may still be taken of the generator's device; None = not counted.

    Returns:
        "apart": on two devices. "together": both fit on one. "in turns": they do not.
        "as placed": on an unknown one; or on one that is full, and one must not be moved.
    """
    if generator.device is None or verifier.device is None:
        return "as placed"
    if generator.device != verifier.device:
        return "apart"
    if free is None or generator.missing + verifier.missing + SPARE <= free:
        return "together"
    return "in turns" if generator.movable and verifier.movable else "as placed"


def device_of(part: Any) -> str | None:
    """Returns where a generator or verifier is to compute, None if it does not say."""
    device = getattr(part, "home", None) or getattr(part, "device", None)
    return None if device is None else str(device)


def seat_of(part: Any) -> Seat:
    """Returns what a generator or verifier says of itself."""
    device, there = device_of(part), str(getattr(part, "device", None))
    nbytes = getattr(part, "nbytes", None) if hasattr(part, "to") else None
    return Seat(device, 0 if device in (None, there) else nbytes or 0, nbytes is not None)


class Seats:
    """Keeps the parts of a search where its plan wants them.

    `devices`: where to "draw" and to "judge", None where a part does not say. `overlap`: whether
    to do both at once: as the search says, else on two devices and on a GPU that both share.
    `moves`: how often a part was moved.
    """

    def __init__(self, search: Search) -> None:
        parts = (search.generator, search.verifier)
        self._seats = [(part, device_of(part)) for part in parts]
        self._found = [str(getattr(part, "device", None)) for part in parts]
        self.devices = dict(zip(("draw", "judge"), map(device_of, parts), strict=True))
        self.plan = _planned(*parts)
        _warn_of(search.judge)
        shared = self.plan == "together" and str(self.devices["draw"]).startswith("cuda")
        asked = search.overlap
        if asked is None:
            # On one GPU as well: a verifier's small kernels leave much of it idle.
            asked = self.plan == "apart" or shared
        self.overlap = asked and self.plan != "in turns"
        self.moves = 0

    @property
    def waits(self) -> bool:
        """Says whether more is drawn before what was drawn is judged."""
        return self.overlap or self.plan == "in turns"

    def to_draw(self) -> None:
        """Brings the generator to its device, after the verifier has left if it must."""
        self._bring(0, 1)

    def to_judge(self) -> None:
        """Brings the verifier to its device, after the generator has left if it must."""
        self._bring(1, 0)

    def restore(self) -> None:
        """Brings parts that took turns back to where they were found, the leaving one first."""
        if self.plan == "in turns":
            places = zip(self._seats, self._found, strict=True)
            for (part, _), found in sorted(places, key=lambda place: place[1] != "cpu"):
                self._move(part, found)

    def _bring(self, wanted: int, other: int) -> None:
        if self.plan == "in turns":
            self._move(self._seats[other][0], "cpu")
        part, home = self._seats[wanted]
        waits = self.plan == "together" and getattr(part, "home", None) is not None
        if waits or self.plan == "in turns":
            self._move(part, home)

    def _move(self, part: Any, device: str | None) -> None:
        if str(part.device) != device:
            part.to(device)
            self.moves += 1


def _warn_of(judge: Any) -> None:
    """Warns where a held-out judge waits for a move that only the verifier makes."""
    home, there = getattr(judge, "home", None), str(getattr(judge, "device", None))
    if home not in (None, there):
        warnings.warn(
            f"The held-out judge did not fit on {home} and judges on {there}, which is slow: only "
            "generator and verifier take turns. Load it with device=… first, or judge the "
            "finished run with `tts-run --rejudge`.",
            RunWarning,
            stacklevel=2,
        )


def _planned(generator: Any, verifier: Any) -> Plan:
    """Asks the parts for no more than is needed: their sizes are counted weight by weight."""
    at = device_of(generator)
    if at is None or at != device_of(verifier):
        return plan(Seat(at), Seat(device_of(verifier)), None)
    free = free_bytes(at)
    if all(str(part.device) == at for part in (generator, verifier)):
        quick = plan(Seat(at), Seat(at), free)
        if quick == "together":
            return quick
    return plan(seat_of(generator), seat_of(verifier), free)
