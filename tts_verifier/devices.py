"""Where generator and verifier compute: side by side, in turns on one device, or on two.

Both are left where they are if they fit. Where they do not, one waits in host memory while the
other works, and they change places once for many pictures. A part may say where it computes
(`device`); one that may also be moved has `nbytes`, the bytes of its weights, or None where it
must stay, `to(device)`, and, if it waits elsewhere at first, `home`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from tts_verifier.memory import SPARE, free_bytes
from tts_verifier.search import Search

Plan = Literal["as placed", "apart", "together", "in turns"]

HELD: Final = 256
"""Pictures that wait to be judged, at most, where the parts take turns: some minutes' work
for a move's seconds, and less than a gigabyte at 1024 x 1024."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a part is to compute, None = unknown; bytes of its weights, None = it must stay."""

    device: str | None
    nbytes: int | None = None


def seat_of(part: Any) -> Seat:
    """Returns what a generator or verifier says of itself."""
    device = getattr(part, "home", None) or getattr(part, "device", None)
    nbytes = getattr(part, "nbytes", None) if hasattr(part, "to") else None
    return Seat(None if device is None else str(device), nbytes)


def plan(generator: Seat, verifier: Seat, room: int | None) -> Plan:
    """Decides how two parts share their devices.

    Args:
        generator: where, and how large.
        verifier: likewise.
        room: bytes that both may take of one device together; None = unknown.

    Returns:
        "apart": on two devices. "together": both fit on one. "in turns": they do not.
        "as placed": on one device or an unknown one, and at least one must not be moved.
    """
    if generator.device is None or verifier.device is None:
        return "as placed"
    if generator.device != verifier.device:
        return "apart"
    if generator.nbytes is None or verifier.nbytes is None:
        return "as placed"
    if room is None or generator.nbytes + verifier.nbytes + SPARE <= room:
        return "together"
    return "in turns"


class Seats:
    """Keeps the parts of a search where its plan wants them.

    `overlap`: whether to judge beside drawing: as the search says, else on two devices.
    `moves`: how often a part was moved.
    """

    def __init__(self, search: Search) -> None:
        parts = (search.generator, search.verifier)
        self._seats = [(part, seat_of(part)) for part in parts]
        generator, verifier = (seat for _, seat in self._seats)
        self.plan = plan(generator, verifier, _room(self._seats))
        asked = self.plan == "apart" if search.overlap is None else search.overlap
        self.overlap = asked and self.plan != "in turns"
        self.moves = 0

    def to_draw(self) -> None:
        """Brings the generator to its device, after the verifier has left if it must."""
        self._bring(0, 1)

    def to_judge(self) -> None:
        """Brings the verifier to its device, after the generator has left if it must."""
        self._bring(1, 0)

    def _bring(self, wanted: int, other: int) -> None:
        if self.plan == "in turns":
            self._move(self._seats[other][0], "cpu")
        part, seat = self._seats[wanted]
        if seat.nbytes is not None and seat.device is not None:
            self._move(part, seat.device)

    def _move(self, part: Any, device: str) -> None:
        if str(part.device) != device:
            part.to(device)
            self.moves += 1


def _room(seats: list[tuple[Any, Seat]]) -> int | None:
    """Returns what is free on the generator's device, with what the parts hold of it already."""
    device = seats[0][1].device
    free = None if device is None else free_bytes(device)
    if free is None:
        return None
    there = [seat for part, seat in seats if str(getattr(part, "device", None)) == device]
    return free + sum(seat.nbytes or 0 for seat in there)


def own_stream(device: str | None) -> None:
    """Gives the calling thread a stream of its own on a GPU, so that it need not wait for others.

    All threads share one stream else, in which kernels run one after another. Its kernels go
    first, as a verifier's are small and many: behind those of a drawing each would wait.
    """
    if device is None or not device.startswith("cuda"):
        return
    import torch

    # What other threads have asked of the device so far, such as the weights, is there.
    torch.cuda.synchronize(device)
    torch.cuda.set_stream(_stream(device))


@cache
def _stream(device: str) -> Any:
    """One for all runs: memory that a stream has used is kept for it."""
    import torch

    return torch.cuda.Stream(device, priority=-1)
