"""A generator and a verifier in a few lines of numpy: real images and scores without a model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import Verifier, check_detail, check_pairs
from tts_verifier.types import (
    CachedDrafts,
    Continue,
    Cost,
    Detail,
    Drafts,
    Draw,
    Heatmap,
    Heatmaps,
    Job,
    Look,
    LowBand,
    Near,
    Repaint,
    Rewritten,
    Sample,
    Setting,
    State,
    Trial,
    Verdict,
)
from tts_verifier.types.score_names import SCORE_NAMES

_CELLS: Final = 4
_GUIDED: Final = 2
"""Network evaluations per step, as with classifier-free guidance."""


class FakeGenerator:
    """Generates small images whose colour and pattern are a function of the noise.

    Safe to share between threads, as far as `fails` is; the entries of `trace` then mix.

    The noise is float32 (3, 4, 4). An unfinished image is the finished one faded to
    grey; a draft is the finished one. `trace`
    gets an entry per call: "g" and the number of jobs.

    Args:
        batch_size: jobs per batch.
        size: width and height of the images in pixels, a multiple of 4.
        steps: denoising steps of a finished image.
        fails: job -> whether its sample is an error.

    Raises:
        InputError: a number is not usable.
    """

    supports: frozenset[type] = frozenset(
        {Draw, Continue, Repaint, Look, Near, LowBand, Rewritten, Drafts, CachedDrafts}
    )

    def __init__(
        self,
        batch_size: int = 4,
        size: int = 16,
        *,
        steps: int = 10,
        fails: Callable[[Job], bool] | None = None,
    ) -> None:
        if min(batch_size, size, steps) < 1 or size % _CELLS:
            raise InputError(
                "batch_size, size and steps must be positive and size a multiple of 4, got "
                f"{batch_size}, {size} and {steps}."
            )
        self.batch_size = batch_size
        self.settings: Mapping[str, Setting] = {"model": "fake", "size": size, "steps": steps}
        self.size, self.steps = size, steps
        self.trace: list[str] = []
        self._fails = fails

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Generates an image for every job; a job that `fails` becomes a sample with an error."""
        self.trace.append(f"g{len(jobs)}")
        return [self._sample(job) for job in jobs]

    def _sample(self, job: Job) -> Sample:
        if self._fails is not None and self._fails(job):
            return Sample(job, None, error="fails on purpose")
        if isinstance(job.proposal, Repaint):
            return self._repaint(job, job.proposal)
        start, until, latents = self._latents(job)
        # Even the smallest share takes a step.
        pace = job.proposal.pace if isinstance(job.proposal, Draw) else 1.0
        evaluations = _GUIDED * max(round(self.steps * (until - start) * pace), 1)
        cost = Cost(network_evaluations=evaluations, vae_passes=1)
        state: State | None = {"latents": latents} if until < 1 else None
        return Sample(job, self._image(latents, until), until, cost, state)

    def _latents(self, job: Job) -> tuple[float, float, NDArray[np.float32]]:
        """Returns the fraction to start from, the fraction to stop at, and the latents there."""
        p = job.proposal
        if isinstance(p, Draw):
            noise = _initial_noise(p, job.ancestors)
            if p.rewrite:
                # Another text makes another image, of the same seed too.
                noise = _normal_noise(zlib.crc32(job.text.encode()) ^ p.seed)
            return 0.0, p.until, noise
        if not isinstance(p, Continue):
            raise InputError(f"FakeGenerator cannot serve {p!r}.")
        parent = job.ancestors[0]
        if parent.state is None:
            raise InputError(f"Continue needs the state of trial {parent.id}, it has none.")
        latents = parent.state.load()["latents"]
        fresh = _normal_noise(p.seed)
        # The two weights leave the variance of the latents at 1.
        for share in (p.renoise, p.eta):
            latents = (np.sqrt(1 - share**2) * latents + share * fresh).astype(np.float32)
        return max(parent.progress - p.renoise, 0.0), p.until, latents

    def _image(self, latents: NDArray[np.float32], progress: float) -> Image.Image:
        # A mean of 4 x 4 normal values has a standard deviation of 1 / 4; the factor makes it 1.
        colour = _CELLS * latents.mean(axis=(1, 2), keepdims=True)
        values = 0.5 + 0.5 * progress * np.tanh(0.7 * colour + 0.3 * latents)
        pixels = np.kron(values, np.ones((1, self.size // _CELLS, self.size // _CELLS)))
        return Image.fromarray(np.rint(pixels * 255).astype(np.uint8).transpose(1, 2, 0))

    def _repaint(self, job: Job, proposal: Repaint) -> Sample:
        stored = job.ancestors[0].image
        if stored is None:
            raise InputError(f"Repaint needs the image of trial {proposal.parent}, it has none.")
        old = np.asarray(stored.load(), np.float32)
        new = np.asarray(self._image(_normal_noise(proposal.seed), 1.0), np.float32)
        share = proposal.mask.array()[:, :, None] * proposal.strength
        pixels = np.rint((1 - share) * old + share * new).astype(np.uint8)
        evaluations = _GUIDED * max(round(self.steps * proposal.strength), 1)
        return Sample(job, Image.fromarray(pixels), 1.0, Cost(evaluations, vae_passes=2))


def _normal_noise(seed: int) -> NDArray[np.float32]:
    shape = (3, _CELLS, _CELLS)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _initial_noise(draw: Draw, ancestors: Sequence[Trial]) -> NDArray[np.float32]:
    """Returns the initial noise: a function of the proposal and its ancestors."""
    noise = _normal_noise(draw.seed)
    if isinstance(draw.noise, Near):
        parent = ancestors[0].proposal
        if not isinstance(parent, Draw):
            raise InputError(f"Near needs a parent that was generated from noise, got {parent!r}.")
        r = draw.noise.radius
        near = _initial_noise(parent, ancestors[1:]) * np.float32(np.sqrt(1 - r**2))
        return near + noise * np.float32(r)
    if isinstance(draw.noise, LowBand):
        cells, block = _CELLS >> draw.noise.level, 1 << draw.noise.level
        means = noise.reshape(3, cells, block, cells, block).mean(axis=(2, 4))
        # A coefficient of the orthonormal Haar band is `block` times the mean of its block.
        targets = np.array(draw.noise.coefficients, np.float32).reshape(means.shape) / block
        noise = noise + np.kron(targets - means, np.ones((1, block, block), np.float32))
    return noise


class FakeVerifier(Verifier):
    """Scores an image by its mean red, green and blue.

    Safe to share between threads, as far as its functions are; the entries of `trace` then mix.

    `trace` gets an entry per call: "v" and the number of images, or "l" for detail "score".

    Args:
        scores: image and prompt -> scores by name; None = the official four, from colours.
        unparsable: image and prompt -> whether the reply cannot be parsed: scores of NaN.
    """

    map_names = ("misalignment", "artifact")

    def __init__(
        self,
        scores: Callable[[Image.Image, str], Mapping[str, float]] | None = None,
        *,
        unparsable: Callable[[Image.Image, str], bool] | None = None,
    ) -> None:
        self.settings: Mapping[str, Setting] = {"model": "fake"}
        self.trace: list[str] = []
        self._scores = scores or _colour_scores
        self.score_names = None if scores else SCORE_NAMES
        self._unparsable = unparsable

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Verifies image i against prompt i."""
        check_detail(detail)
        converted = as_images(images)
        texts = check_pairs(converted, prompts)
        self.trace.append(f"{'v' if detail == 'diagnose' else 'l'}{len(converted)}")
        return [self._verdict(i, p, detail) for i, p in zip(converted, texts, strict=True)]

    def _verdict(self, image: Image.Image, prompt: str, detail: Detail) -> Verdict:
        scores, cost = self._scores(image, prompt), Cost(verifier_calls=1)
        if self._unparsable is not None and self._unparsable(image, prompt):
            return Verdict(dict.fromkeys(scores, np.nan), text="no idea", detail=detail, cost=cost)
        text = ", ".join(f"{name}={value:.3f}" for name, value in scores.items())
        if detail == "score":
            return Verdict(scores, text=text, detail=detail, cost=cost)
        small = np.asarray(image.convert("L").resize((6, 6))).astype(np.float32) / np.float32(255)
        raw = {"misalignment": small, "artifact": 1 - small}
        maps = Heatmaps({name: Heatmap(grid, image.size) for name, grid in raw.items()})
        box = (0.0, 0.0, image.width / 2, float(image.height))
        return Verdict(scores, maps, (box,), text, detail, cost)


class FakeComparer:
    """Prefers the bluer image, and always the first one a little.

    Safe to share between threads; the entries of `trace` then mix.

    `trace` gets an entry per call: "c" and the number of pairs.

    Args:
        bias: by how much it prefers the first image.
        unparsable: two images -> whether there is no answer.
    """

    def __init__(
        self,
        *,
        bias: float = 0.1,
        unparsable: Callable[[Image.Image, Image.Image], bool] | None = None,
    ) -> None:
        self.settings: Mapping[str, Setting] = {"model": "fake", "bias": bias}
        self.trace: list[str] = []
        self._bias, self._unparsable = bias, unparsable

    def compare(
        self, first: Sequence[ImageLike], second: Sequence[ImageLike], prompts: Sequence[str]
    ) -> list[Verdict]:
        """Compares first[i] with second[i] for prompt i."""
        ones, others = as_images(first), as_images(second)
        check_pairs(ones, prompts)
        self.trace.append(f"c{len(ones)}")
        return [self._preference(a, b) for a, b in zip(ones, others, strict=True)]

    def _preference(self, one: Image.Image, other: Image.Image) -> Verdict:
        if self._unparsable is not None and self._unparsable(one, other):
            return Verdict({"preferred": np.nan}, text="no idea")
        blues = [np.asarray(image, np.float64)[..., 2].mean() / 255 for image in (one, other)]
        preferred = 0.5 + (blues[0] - blues[1]) / 4 + self._bias
        return Verdict({"preferred": float(preferred)}, text=f"{preferred:.3f}")


def _colour_scores(image: Image.Image, prompt: str) -> Mapping[str, float]:
    red, green, blue = (np.asarray(image, np.float64).mean(axis=(0, 1)) / 255).tolist()
    values = (red, green, blue, (red + green + blue) / 3)
    return dict(zip(SCORE_NAMES, values, strict=True))
