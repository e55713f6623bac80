"""Jobs that wait for a batch. A batch holds one kind of proposal, so each kind has a queue."""

from __future__ import annotations

from collections import deque

from tts_verifier.types import KINDS, Job, kind_of


class JobQueues:
    """Jobs by the kind of their proposal."""

    def __init__(self) -> None:
        self._by_kind: dict[str, deque[Job]] = {kind: deque() for kind in KINDS}

    def add(self, job: Job) -> None:
        """Puts a job at the end of its kind's queue."""
        self._by_kind[kind_of(job.proposal)].append(job)

    @property
    def longest(self) -> deque[Job]:
        """The queue of the kind of which most are waiting."""
        return max(self._by_kind.values(), key=len)
