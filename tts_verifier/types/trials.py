"""The nouns: frozen values that flow forward from prompt to choice.

A *proposal* says what to draw next. A *verdict* says how good a drawing is, where it is
wrong and why. Everything else here binds the two together. Only numpy and Pillow are
imported, so that strategies, logs and reports need no deep-learning library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.showing import card, overlay

Detail = Literal["score", "diagnose"]
"""`score`: the numbers only, quickly. `diagnose`: numbers, heatmaps, boxes and reasons."""

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in the image's own pixels, x to the right, y down, x1 <= x2, y1 <= y2."""

T = TypeVar("T")

Setting = str | int | float | bool | None
"""A value that is one cell of the log."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the user asked for; `id` is unique within a run, `category` is for reports."""

    id: str
    text: str
    category: str = ""


# -- proposals ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Near:
    """Initial noise near a parent's: `parent` is a trial id, `radius` in (0, 1].

    The noise is sqrt(1 - radius^2) * parent's + radius * fresh, so its norm is kept in
    expectation and radius 1 forgets the parent.
    """

    parent: str
    radius: float


@dataclass(frozen=True, slots=True)
class LowBand:
    """Initial noise of the seed with its low-frequency wavelet band replaced.

    `coefficients`: the band after `level` Haar steps, channels first, row-major.
    """

    coefficients: tuple[float, ...]
    level: int


@dataclass(frozen=True, slots=True)
class Mask:
    """A boolean image as a value: hashable, comparable, exact. True = may be repainted."""

    height: int
    width: int
    bits: bytes

    @classmethod
    def of(cls, array: NDArray[np.bool_]) -> Mask:
        """Packs an (H, W) bool array."""
        if array.ndim != 2 or array.dtype != np.bool_:
            raise InputError(
                f"A mask must be a bool array of shape (H, W), got {array.dtype} {array.shape}."
            )
        return cls(array.shape[0], array.shape[1], np.packbits(array).tobytes())

    def array(self) -> NDArray[np.bool_]:
        """Returns the (H, W) bool array."""
        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.height * self.width)
        return flat.reshape(self.height, self.width).astype(np.bool_)


@dataclass(frozen=True, slots=True)
class Draw:
    """From noise, up to the fraction `until` of the steps. `noise`: None = the seed's own."""

    seed: int
    until: float = 1.0
    noise: Near | LowBand | None = None


@dataclass(frozen=True, slots=True)
class Continue:
    """Carries a partly denoised `parent` on, up to the fraction `until` of the steps.

    First goes back by the fraction `renoise`, with fresh noise of `seed`; then adds the
    share `eta` of fresh noise at every step (0 = deterministic).
    """

    parent: str
    until: float
    seed: int
    renoise: float = 0.0
    eta: float = 0.0


@dataclass(frozen=True, slots=True)
class Repaint:
    """Draws the masked part of a finished `parent` anew; `strength` in (0, 1]."""

    parent: str
    mask: Mask
    seed: int
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """Draws nothing: diagnoses in full what was only scored so far."""

    parent: str


Proposal = Draw | Continue | Repaint | Look
KINDS: Mapping[str, type] = {
    "draw": Draw,
    "continue": Continue,
    "repaint": Repaint,
    "look": Look,
}


def kind_of(proposal: Proposal) -> str:
    """Returns the proposal's kind as the log writes it."""
    return next(name for name, cls in KINDS.items() if type(proposal) is cls)


def parent_of(proposal: Proposal) -> str | None:
    """Returns the id of the trial that a proposal starts from, or None."""
    if isinstance(proposal, Draw):
        return proposal.noise.parent if isinstance(proposal.noise, Near) else None
    return proposal.parent


# -- cost --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took; adds up.

    `network_evaluations`: denoiser evaluations of one image, classifier-free guidance
    counted as two. `vae_passes`: encodings and decodings of one image. Seconds are wall
    clock, an image's share of its batch.
    """

    network_evaluations: int = 0
    vae_passes: int = 0
    verifier_calls: int = 0
    draw_seconds: float = 0.0
    judge_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.network_evaluations + other.network_evaluations,
            self.vae_passes + other.vae_passes,
            self.verifier_calls + other.verifier_calls,
            self.draw_seconds + other.draw_seconds,
            self.judge_seconds + other.judge_seconds,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits of a prompt's search, None = no limit; `seconds` of drawing and judging."""

    candidates: int | None = None
    network_evaluations: int | None = None
    verifier_calls: int | None = None
    seconds: float | None = None

    def left(self, candidates: int, cost: Cost) -> Budget:
        """Returns what remains after `candidates` drawings that took `cost`."""

        def rest(limit: float | None, used: float) -> float | None:
            return None if limit is None else max(limit - used, 0)

        seconds = cost.draw_seconds + cost.judge_seconds
        return Budget(
            rest(self.candidates, candidates),  # type: ignore[arg-type]
            rest(self.network_evaluations, cost.network_evaluations),  # type: ignore[arg-type]
            rest(self.verifier_calls, cost.verifier_calls),  # type: ignore[arg-type]
            rest(self.seconds, seconds),
        )

    @property
    def spent(self) -> bool:
        """True when any limit has reached zero."""
        limits = (self.candidates, self.network_evaluations, self.verifier_calls, self.seconds)
        return any(limit is not None and limit <= 0 for limit in limits)


# -- verdicts ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """One map on its decoder's grid, and where the image lies on that grid.

    `grid`: float32 (h, w) in [0, 1]. `size`: the image's (width, height) in pixels.
    `box`: the part of the grid that the image covers, (x1, y1, x2, y2) as fractions of the
    grid; (0, 0, 1, 1) when the image was squashed to fill it, less when letterboxed.
    """

    grid: NDArray[np.float32]
    size: tuple[int, int]
    box: Box = (0.0, 0.0, 1.0, 1.0)

    def on_image(self) -> NDArray[np.float32]:
        """Returns the map on the image's own pixels: float32 (H, W) in [0, 1], bilinear."""
        h, w = self.grid.shape
        x1, y1, x2, y2 = self.box
        grid = Image.fromarray(np.ascontiguousarray(self.grid, dtype=np.float32))
        part = (x1 * w, y1 * h, x2 * w, y2 * h)
        pixels = grid.resize(self.size, Image.Resampling.BILINEAR, box=part)
        return np.clip(np.asarray(pixels, dtype=np.float32), 0.0, 1.0)


class Heatmaps(Mapping[str, NDArray[np.float32]]):
    """Maps by name, each float32 (H, W) in [0, 1] on the image's own pixels.

    Computed from the decoder's grid when asked for. A map that the model did not give is
    absent, never zeros. `raw` holds the maps as the decoder made them.
    """

    def __init__(self, raw: Mapping[str, Heatmap] | None = None) -> None:
        self.raw: Mapping[str, Heatmap] = dict(raw or {})

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.raw[name].on_image()

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"Heatmaps({', '.join(self.raw)})"


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """How good an image is, where it is wrong and why.

    `scores`: name -> number in [0, 1], higher is better, NaN where the reply gave none; those
    in `_expected` are finer. `text`: the reply, unchanged. `detail`: how thorough the look was.
    """

    scores: Mapping[str, float]
    heatmaps: Heatmaps = field(default_factory=Heatmaps)
    boxes: tuple[Box, ...] = ()
    text: str = ""
    detail: Detail = "diagnose"
    cost: Cost = Cost()

    def overlay(self, image: Image.Image, name: str | None = None) -> Image.Image:
        """Returns an RGB copy of the judged picture with a map over it and the boxes drawn.

        `name`: of a map; None shows the largest value of all maps at every pixel.

        Raises:
            InputError: there is no such map, or the picture has another size.
        """
        return overlay(image, self.heatmaps, self.boxes, name=name)


# -- drawing -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Stored(Generic[T]):
    """A value that lives in a file until somebody looks.

    `path` is relative to the run folder, empty for a value that is only in memory;
    `sha256` is of the file's bytes.
    """

    load: Callable[[], T]
    path: str = ""
    sha256: str = ""


State = Mapping[str, NDArray[np.float32]]
"""A generator's own state of an unfinished candidate (latents and the like)."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One candidate, drawn and judged: a row of the log.

    `objective`: what the search climbs, NaN when the verdict has no usable score.
    `parent_id`: the trial it was made from. `error`: why there is no image or no score.
    """

    id: str
    prompt: Prompt
    round: int
    proposal: Proposal
    progress: float
    scores: Mapping[str, float]
    objective: float
    cost: Cost = Cost()
    boxes: tuple[Box, ...] = ()
    text: str = ""
    detail: Detail = "diagnose"
    image: Stored[Image.Image] | None = None
    heatmaps: Mapping[str, Stored[Heatmap]] = field(default_factory=dict)
    state: Stored[State] | None = None
    judge: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def parent_id(self) -> str | None:
        """The id of the trial that this one was made from, or None."""
        return parent_of(self.proposal)

    @property
    def finished(self) -> bool:
        """True when all steps were taken, so that this trial may be chosen."""
        return self.progress >= 1.0 and not self.error

    def _repr_html_(self) -> str:
        """Shows the trial in a notebook."""
        title = f"{self.prompt.text} · {self.error or f'{self.objective:.3f}'}"
        numbers = {**self.scores, **{f"judge: {n}": value for n, value in self.judge.items()}}
        pictures = [] if self.image is None else [self.image.load()]
        maps = {name: stored.load().on_image() for name, stored in self.heatmaps.items()}
        pictures += [overlay(picture, maps, self.boxes) for picture in pictures]
        return card(title, pictures, numbers, self.text)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A proposal with all that it needs: `ancestors` from the parent to the root."""

    prompt: Prompt
    proposal: Proposal
    ancestors: tuple[Trial, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a job drew: an RGB image (an unfinished one's x0 preview), or an `error`.

    `progress`: the fraction of steps taken, in [0, 1]. `kept`: the same image where it is in
    a file already, to which the log then refers.
    """

    job: Job
    image: Image.Image | None
    progress: float = 1.0
    cost: Cost = Cost()
    state: State | None = None
    error: str = ""
    kept: Stored[Image.Image] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """All that a strategy may know besides the history.

    `seed`: the run's. `supports`: the kinds of proposal and noise that the generator can serve.
    `budget`: what is left of it. `objective`: scores -> the number to climb.
    """

    prompt: Prompt
    seed: int
    supports: frozenset[type]
    budget: Budget
    objective: Callable[[Mapping[str, float]], float]


# -- results -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a search ends with: the chosen trial (None if none is usable) and all, best first."""

    trial: Trial | None
    order: tuple[Trial, ...]
