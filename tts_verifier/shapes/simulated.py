"""A simulated generator: the renderer with planted flaws at known rates.

It replaces a diffusion model where the search itself is studied. It fails as real generators do
(wrong count, place, colour or shape, broken pixels), at rates that its arguments set, and renders a
hundred images a second on one core. It has no denoising steps, so it can neither continue nor
repaint an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.types import Cost, Draw, Job, Rewritten, Sample, Setting, kind_of


class SimulatedGenerator:
    """Generates images for captions of the shapes world.

    Safe to share between threads: it keeps no state.

    Args:
        misalignment: share of images that contradict their caption, in [0, 1].
        artifact: share of images with broken pixels, in [0, 1].
        batch_size: images generated at a time.

    Raises:
        InputError: a share is not in [0, 1] or `batch_size` is below 1.
    """

    supports: frozenset[type] = frozenset({Draw, Rewritten})

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
        """Generates an image for every job, which depends on the job's caption and seed alone.

        Raises:
            InputError: a caption is outside the grammar.
            UnsupportedError: a job is not a `Draw` to the end from the seed's own noise.
        """
        return [self._sample(job) for job in jobs]

    def _sample(self, job: Job) -> Sample:
        # Imported here, because listing the registry's generators must not import torch.
        import torch

        from tts_verifier.shapes.flaws import render_flawed
        from tts_verifier.shapes.grammar import parse_caption
        from tts_verifier.shapes.renderer import to_pil_images

        draw = job.proposal
        if not isinstance(draw, Draw) or draw.until != 1.0 or draw.noise or draw.pace != 1:
            raise UnsupportedError(
                "A simulated generator only generates whole images from seeds, got a "
                f"{kind_of(draw)!r} proposal."
            )
        generator = torch.Generator().manual_seed(draw.seed)
        # One image at a time, so that it does not depend on the other jobs of the batch.
        flawed = render_flawed([parse_caption(job.text)], generator, **self._shares)
        return Sample(job, to_pil_images(flawed.images)[0], cost=Cost(network_evaluations=1))
