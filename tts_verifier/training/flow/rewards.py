"""What verifiers say of drawn pictures: rewards, maps on the latent grid, and judges beside."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tts_verifier import Objective
from tts_verifier.errors import InputError, RunError, TTSError, suggestion
from tts_verifier.interfaces import Verifier, check_verdicts
from tts_verifier.training.common.bounds import check_processes
from tts_verifier.training.flow.settings import placed_at
from tts_verifier.types import Detail, Verdict
from tts_verifier.verifiers.load import load_verifier


@dataclass(frozen=True, slots=True)
class VerifierSpec:
    """A verifier of a config, and what is read from its verdicts."""

    verifier: str
    """A name that recipes know, "shapes", a folder, a hub id or an import path."""
    objective: Mapping[str, float] | None = None
    """Score -> weight; None = the verifier's own."""
    weight: float = 1.0
    """Of its objective in the reward."""
    detail: Detail = "diagnose"
    """As of `Verifier.verify`."""
    processes: int = 0
    """Processes that verify, each with the verifier; 0 = this one. For verifiers on the CPU."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the verifier."""

    @classmethod
    def read(cls, values: Mapping[str, Any], argument: str) -> VerifierSpec:
        """Reads a table of a config.

        Raises:
            InputError: a key is unknown or missing, or a value cannot be used.
        """
        for key in values:
            if key not in cls.__slots__:
                raise InputError(
                    f"{argument} has the unknown key {key!r}. {suggestion(key, cls.__slots__)}",
                    argument=argument,
                )
        if not isinstance(values.get("verifier"), str) or not values["verifier"]:
            raise InputError(
                f"Each table of {argument} needs the key verifier, a name, got {dict(values)}.",
                argument=argument,
            )
        spec = cls(**values)
        if spec.detail not in ("score", "diagnose"):
            raise InputError(
                f"{argument}: detail must be score or diagnose, got {spec.detail!r}.",
                argument=argument,
            )
        numbers = type(spec.weight) in (int, float) and math.isfinite(spec.weight)
        processes = type(spec.processes) is int and spec.processes >= 0
        if not (numbers and processes and isinstance(spec.options, Mapping)):
            raise InputError(
                f"{argument}: weight must be a finite number, processes a whole number from 0, and "
                f"options a table, got {spec.weight!r:.40}, {spec.processes!r:.40} and "
                f"{spec.options!r:.40}.",
                argument=argument,
            )
        with placed_at(argument):
            Objective(spec.objective)
            check_processes("processes", spec.processes)
        # Judges and the verifier of maps are not weighed.
        if argument == "rewards" and not spec.weight:
            raise InputError(
                f"{argument}: a weight of 0 rewards nothing, and {spec.verifier!r:.80} has it. "
                "Name the verifier in judges if it should only measure.",
                argument=argument,
            )
        return spec

    def load(self, device: str) -> Verifier:
        """Loads the verifier; a checkpoint is loaded onto this device."""
        return load_verifier(self.verifier, options=self.options, device=device)


class LoadedVerifier:
    """A verifier that is loaded, in this process or in others. One thread at a time calls it.

    Args:
        spec: of the verifier.
        device: see `VerifierSpec.load`.

    Raises:
        InputError: the objective names a score that the verifier does not give.
    """

    def __init__(self, spec: VerifierSpec, device: str) -> None:
        self.spec = spec
        self._verifier = spec.load("cpu" if spec.processes else device)
        self.objective = self._verifier.objective
        if spec.objective is not None:
            self.objective = Objective(spec.objective)
        self.objective.check_names(self._verifier.score_names)
        self.detail: Detail = spec.detail
        if spec.detail not in self._verifier.details:
            self.detail = next(iter(self._verifier.details))
        self._pool: ProcessPoolExecutor | None = None
        if spec.processes:
            # Not forked: torch and CUDA run in this process.
            self._pool = ProcessPoolExecutor(
                spec.processes, get_context("spawn"), _load_in_process, (spec,)
            )

    def verify(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[Verdict]:
        """Verifies images (R, H, W, 3) against prompts.

        Raises:
            TTSError: the verifier or its processes failed, whatever they raised.
        """
        try:
            return self._verify(images, prompts)
        except TTSError:
            raise
        except Exception as error:
            raise RunError(f"A verifier failed: {type(error).__name__}: {error}") from error

    def _verify(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[Verdict]:
        if self._pool is None:
            pictures = [Image.fromarray(image) for image in images]
            verdicts = self._verifier.verify(pictures, prompts, detail=self.detail)
            return check_verdicts(self._verifier, verdicts, len(images), "images")
        # Small parts, since some pictures take much longer than others.
        size = max(1, math.ceil(len(images) / (4 * self.spec.processes)))
        parts = [
            (images[i : i + size], prompts[i : i + size], self.detail)
            for i in range(0, len(images), size)
        ]
        return [verdict for part in self._pool.map(_verify_in_process, parts) for verdict in part]

    def objectives(self, verdicts: Sequence[Verdict]) -> NDArray[np.float64]:
        """Returns the objectives of verdicts, NaN where one is not known."""
        return np.array([self.objective(v.scores) for v in verdicts], np.float64)

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What the verifiers say of R pictures."""

    rewards: NDArray[np.float64]
    """(R,), NaN where one is not known."""
    terms: Mapping[str, NDArray[np.float64]]
    """Verifier -> (R,), its objective."""
    maps: Tensor | None
    """float32 (R, h, w), what is wrong; NaN where a map is missing; None without maps."""
    reason: str = ""
    """Why the first picture without a reward has none; empty if all have one."""


class WeightedRewards:
    """Gives pictures their rewards and maps. One thread at a time calls it.

    Args:
        specs: of the verifiers that the reward is a weighted sum of.
        maps: heatmap -> weight; empty = no maps.
        map_spec: the verifier that gives maps; None = those of the reward.
        grid: (h, w), of the latents.
        device: of the verifiers.

    Raises:
        InputError: a verifier cannot be made as it is specified.
    """

    def __init__(
        self,
        specs: Sequence[VerifierSpec],
        *,
        maps: Mapping[str, float],
        map_spec: VerifierSpec | None,
        grid: tuple[int, int],
        device: str,
    ) -> None:
        with placed_at("rewards"):
            self.verifiers = [LoadedVerifier(spec, device) for spec in specs]
        with placed_at("map_verifier"):
            self._mapper = None if map_spec is None else LoadedVerifier(map_spec, device)
        self._maps, self._grid = {n: w for n, w in maps.items() if w}, grid

    def __call__(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> Judged:
        """Judges images (R, H, W, 3), each against its prompt.

        Raises:
            InputError: no verdict has the maps that advantages need.
        """
        found = [verifier.verify(images, prompts) for verifier in self.verifiers]
        terms = [v.objectives(verdicts) for v, verdicts in zip(self.verifiers, found, strict=True)]
        weighted = [v.spec.weight * t for v, t in zip(self.verifiers, terms, strict=True)]
        rewards = np.sum(weighted, axis=0)
        names = distinct_names([v.spec.verifier for v in self.verifiers])
        named = dict(zip(names, terms, strict=True))
        reason = reason_of(found, terms)
        if not self._maps:
            return Judged(rewards, named, None, reason)
        if self._mapper is not None:
            found = [self._mapper.verify(images, prompts)]
        maps = [self._map(verdicts) for verdicts in zip(*found, strict=True)]
        if all(math.isnan(m[0, 0]) for m in maps):
            given = sorted({name for part in found for v in part for name in v.heatmaps})
            raise InputError(
                f"advantage needs the maps {', '.join(self._maps)}, and no verdict has them; the "
                f"verifier gives {', '.join(given) or 'none'}. Name its maps in maps, or another "
                "verifier in map_verifier, or use advantage: scalar.",
                argument="advantage",
            )
        return Judged(rewards, named, torch.from_numpy(np.stack(maps)), reason)

    def _map(self, verdicts: Sequence[Verdict]) -> NDArray[np.float32]:
        """Returns the weighted sum of the maps of a picture, NaN if one of them is missing."""
        total = np.zeros(self._grid, np.float32)
        for name, weight in self._maps.items():
            given = [v.heatmaps.on_grid(name) for v in verdicts if name in v.heatmaps]
            if not given:
                return np.full(self._grid, np.nan, np.float32)
            total += weight * given[0].pooled(*self._grid)
        return total

    def close(self) -> None:
        """Ends processes of verifiers."""
        for verifier in (*self.verifiers, self._mapper):
            if verifier is not None:
                verifier.close()


def reason_of(found: Sequence[Sequence[Verdict]], terms: Sequence[NDArray[np.float64]]) -> str:
    """Returns what the first verdict without an objective says; empty if all have one."""
    for verdicts, objectives in zip(found, terms, strict=True):
        for verdict, objective in zip(verdicts, objectives, strict=True):
            if math.isnan(objective):
                # A verdict without either has other scores.
                return verdict.error or verdict.text or repr(verdict)
    return ""


def distinct_names(names: Sequence[str]) -> list[str]:
    """Returns names with a number where one comes again."""
    return [f"{n}_{names[:i].count(n) + 1}" if n in names[:i] else n for i, n in enumerate(names)]


_IN_PROCESS: dict[str, Verifier] = {}
"""The verifier of a process that verifies."""


def _load_in_process(spec: VerifierSpec) -> None:
    # Ctrl-C reaches every process of a terminal; this one ends with the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It would wait for work for ever if the training were killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _IN_PROCESS["verifier"] = spec.load("cpu")


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _verify_in_process(
    part: tuple[NDArray[np.uint8], Sequence[str], Detail],
) -> list[Verdict]:
    images, prompts, detail = part
    pictures = [Image.fromarray(image) for image in images]
    verifier = _IN_PROCESS["verifier"]
    verdicts = verifier.verify(pictures, prompts, detail=detail)
    return check_verdicts(verifier, verdicts, len(images), "images")
