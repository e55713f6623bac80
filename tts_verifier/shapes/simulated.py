"""A simulated generator: the renderer with planted flaws at known rates.

It stands in for a diffusion model where the search is what is studied: its failures are those
of real generators (wrong count, place, colour or shape, broken pixels), it draws a hundred
pictures a second on one core, and how often it fails is an argument. It is no diffusion model:
there is nothing to continue or to repaint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.types import Cost, Draw, Job, Sample, Setting, kind_of


class SimulatedGenerator:
    """Draws captions of the shapes world.

    Args:
        misalignment: share of pictures that contradict their caption, in [0, 1].
        artifact: share of pictures with broken pixels, in [0, 1].
        batch_size: pictures a batch.

    Raises:
        InputError: a share is not in [0, 1] or `batch_size` is below 1.
    """

    supports: frozenset[type] = frozenset({Draw})

    def __init__(
        self, *, misalignment: float = 0.6, artifact: float = 0.3, batch_size: int = 32
    ) -> None:
        for name, share in (("misalignment", misalignment), ("artifact", artifact)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be a share in [0, 1], got {share!r}.", argument=name)
        if batch_size < 1:
            raise InputError(
                f"batch_size must be at least 1, got {batch_size!r}.", argument="batch_size"
            )
        self._shares = {"misalignment": misalignment, "artifact": artifact}
        self.batch_size = batch_size
        self.settings: Mapping[str, Setting] = {"model": "shapes-simulated", **self._shares}

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Draws every job; a picture depends on its caption and seed alone.

        Raises:
            InputError: a caption is outside the grammar.
            UnsupportedError: a job is not a plain draw to the end.
        """
        return [self._draw(job) for job in jobs]

    def _draw(self, job: Job) -> Sample:
        import torch

        from tts_verifier.shapes.flaws import plant
        from tts_verifier.shapes.grammar import parse
        from tts_verifier.shapes.renderer import as_image

        draw = job.proposal
        if not isinstance(draw, Draw) or draw.until != 1.0 or draw.noise is not None:
            raise UnsupportedError(
                f"A simulated generator only draws to the end, got a {kind_of(draw)!r} proposal."
            )
        start = time.perf_counter()
        seed = torch.Generator().manual_seed(draw.seed)
        flawed = plant([parse(job.prompt.text)], seed, **self._shares)
        cost = Cost(network_evaluations=1, draw_seconds=time.perf_counter() - start)
        return Sample(job, as_image(flawed.images[0]), cost=cost)
