"""Images and prompts -> rewards: one number each, the scores it is made of, and dense maps."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.choice.objective import Objective, as_objective
from tts_verifier.errors import InputError, RunWarning, UnsupportedError
from tts_verifier.images import ImageLike, as_list
from tts_verifier.interfaces import Verifier, check_verdicts, details_of
from tts_verifier.types import Detail, Verdict
from tts_verifier.verifiers import load_verifier

LATENT_GRID: Final = (64, 64)
"""Rows and columns of the latents of a picture of 512 x 512, for which the official code
hard-codes its maps (ImageDoctor, train_sd3_hp.py)."""
MOST_CELLS: Final = 1024
"""Rows or columns of a grid."""

PooledMaps = Mapping[str, NDArray[np.float32]]
"""A picture's maps by name; one that it does not have is absent."""


@dataclass(frozen=True, slots=True, eq=False)
class Rewards:
    """The rewards of some pictures. Immutable, so safe to share between threads."""

    scores: NDArray[np.float64]
    """(N,), the objective of each picture; NaN where the verdict does not give it."""
    details: Mapping[str, NDArray[np.float64]]
    """Each score by name, (N,), usually in [0, 1]; NaN where a verdict does not give it."""
    maps: Sequence[PooledMaps]
    """For each picture its maps, float32 (rows, columns) in [0, 1], 1 = flawed."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """How many pictures lack the number ("score"), or a map (its name); without zeros."""

    def stacked(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns the maps of one name as one array, and which of them exist.

        Returns:
            float32 (N, rows, columns), and bool (N,). **Where there is no map the array is NaN**,
            never zero, which would call the picture flawless.

        Raises:
            UnsupportedError: no picture has such a map.
        """
        found = np.array([name in maps for maps in self.maps], bool)
        shape = next((maps[name].shape for maps in self.maps if name in maps), None)
        if shape is None:
            raise UnsupportedError(
                f"None of {len(self.maps)} pictures has a map {name!r}. Use a verifier with maps, "
                'and detail="diagnose"; or train without maps.'
            )
        stack = np.full((len(self.maps), *shape), math.nan, np.float32)
        for place, maps in enumerate(self.maps):
            if name in maps:
                stack[place] = maps[name]
        return stack, found

    def flaws(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns one map of flaws for each picture: at each place the worst of its maps.

        A picture that lacks one of the maps has none here, since a flaw may be in the missing one.

        Returns:
            See `stacked`.

        Raises:
            UnsupportedError: no picture has a map.
        """
        names = sorted({name for maps in self.maps for name in maps})
        # `stacked` says what to do where there is none.
        stacks = [self.stacked(name) for name in names or ["flaws"]]
        worst, found = (
            np.max([s for s, _ in stacks], axis=0),
            np.all([f for _, f in stacks], axis=0),
        )
        if set(self.missing) - {"score", *names}:
            # Of this map there is not a single one.
            return np.full_like(worst, math.nan), np.zeros_like(found)
        return worst, found


class RewardOptions(TypedDict, total=False):
    """The options of a `VerifierReward`, which says what they mean; every key may be absent."""

    objective: Objective | Mapping[str, float] | None
    """What is rewarded."""
    detail: Detail | None
    """How thoroughly pictures are verified."""
    grid: tuple[int, int]
    """Rows and columns of the pooled maps."""


class VerifierReward:
    """Rewards pictures by a verifier. As safe to share between threads as its verifier.

    Args:
        verifier: one, or what `load_verifier` takes: a recipe's name, "shapes", a folder, a hub id.
        objective: what is rewarded; None = the verifier's own.
        detail: "diagnose" gives maps, "score" the numbers only; None = the most it has.
        grid: rows and columns that maps are pooled to, by area, over the whole picture.

    Raises:
        InputError: the objective names a score that the verifier does not give, or the grid is no
            pair of positive numbers.
        UnsupportedError: the verifier does not have the detail.
    """

    def __init__(
        self,
        verifier: Verifier | str,
        *,
        objective: Objective | Mapping[str, float] | None = None,
        detail: Detail | None = None,
        grid: tuple[int, int] = LATENT_GRID,
    ) -> None:
        self.verifier = load_verifier(verifier) if isinstance(verifier, str) else verifier
        if isinstance(verifier, type) or not hasattr(self.verifier, "verify"):
            raise InputError(
                "A verifier must be an object with the method verify, or a name, got "
                f"{verifier!r:.80}.",
                argument="verifier",
            )
        self.objective = as_objective(objective) or self.verifier.objective
        self.objective.check_names(self.verifier.score_names)
        self.grid = checked_grid(grid)
        known = details_of(self.verifier)
        if detail is not None and detail not in known:
            raise UnsupportedError(
                f"detail must be one that the verifier has, {' or '.join(known)}, got {detail!r}."
            )
        self.detail: Detail = detail or ("diagnose" if "diagnose" in known else "score")

    def __call__(
        self,
        images: Iterable[ImageLike],
        prompts: Sequence[str],
        metadata: Any = None,
    ) -> Rewards:
        """Rewards picture i by how well it matches prompt i.

        Args:
            images: a list, or a batch: (N, H, W, C) array or (N, C, H, W) tensor, see `images`.
            prompts: one text for each.
            metadata: what trainers pass beside a prompt; no verifier reads it.

        Raises:
            InputError: an image or a prompt cannot be used, or the lengths differ.
        """
        if isinstance(images, Image.Image):
            raise InputError(
                "A list of images is needed, got one image. Put it into a list: [...]."
            )
        # A batch has four axes; `as_list` refuses what has no images as its items.
        listed = list(images) if getattr(images, "ndim", 1) == 4 else as_list(images, "images")
        given = self.verifier.verify(listed, prompts, detail=self.detail)
        verdicts = check_verdicts(self.verifier, given, len(listed), "images")
        rewards = rewards_of(verdicts, self.objective, self.grid, self._map_names())
        if lacking := rewards.missing.get("score"):
            warnings.warn(
                f"{lacking} of {len(verdicts)} pictures have no reward (NaN): their verdicts lack "
                f"one of {', '.join(self.objective.weights)}.",
                RunWarning,
                stacklevel=2,
            )
        return rewards

    def _map_names(self) -> Iterable[str]:
        return () if self.detail == "score" else self.verifier.map_names or ()


def rewards_of(
    verdicts: Sequence[Verdict],
    objective: Callable[[Mapping[str, float]], float],
    grid: tuple[int, int] | None,
    expected: Iterable[str] = (),
) -> Rewards:
    """Turns verdicts into rewards.

    Args:
        verdicts: one for each picture.
        objective: scores -> the reward; NaN = none.
        grid: rows and columns that maps are pooled to; None = no maps.
        expected: names of maps that every picture should have; others that any has are added.
    """
    names = dict.fromkeys(name for v in verdicts for name in v.scores)
    details = {n: np.array([v.scores.get(n, math.nan) for v in verdicts], float) for n in names}
    scores = np.array([objective(v.scores) for v in verdicts], float)
    maps: list[PooledMaps] = [{}] * len(verdicts)
    if grid is not None:
        maps = [{n: v.heatmaps.on_grid(n).pooled(*grid) for n in v.heatmaps} for v in verdicts]
    return Rewards(scores, details, maps, count_missing(scores, maps, expected))


def count_missing(
    scores: Iterable[float], maps: Sequence[Iterable[str]], expected: Iterable[str] = ()
) -> dict[str, int]:
    """Returns how many pictures lack the number ("score"), or a map (its name); without zeros.

    Args:
        scores: of each picture; NaN = it has none.
        maps: for each picture the names of its maps.
        expected: as in `rewards_of`.
    """
    found = [set(names) for names in maps]
    wanted = {*expected}.union(*found)
    missing = Counter(name for names in found for name in wanted - names)
    missing["score"] = sum(map(math.isnan, scores))
    return {name: n for name, n in missing.items() if n}


def checked_fill(fill: object) -> float | None:
    """Returns the reward of a picture that has none, or raises InputError; None = NaN."""
    if fill is None:
        return None
    # numpy's numbers are among them; bool is a subclass of int.
    if isinstance(fill, bool) or not isinstance(fill, Real) or not math.isfinite(fill):
        raise InputError(
            f"fill must be the reward of a picture that has none, a finite number, or None, got "
            f"{fill!r:.80}.",
            argument="fill",
        )
    return float(fill)


def checked_grid(grid: object) -> tuple[int, int]:
    """Returns rows and columns, or raises InputError."""
    cells = list(grid) if isinstance(grid, list | tuple) else []
    if len(cells) != 2 or not all(type(n) is int and 1 <= n <= MOST_CELLS for n in cells):
        raise InputError(
            f"A grid must be rows and columns from 1 to {MOST_CELLS}, such as (64, 64), got "
            f"{grid!r:.80}.",
            argument="grid",
        )
    return cells[0], cells[1]
