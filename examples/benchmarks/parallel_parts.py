"""What `parallel.py` and `parallel_gpus.py` share, and what their workers import."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np

from tts_verifier.interfaces import Verifier
from tts_verifier.recipe import Recipe, load_recipe
from tts_verifier.recipe.sections import Section
from tts_verifier.runner import RunSetup, execute
from tts_verifier.testing import FakeGenerator
from tts_verifier.types import Cost, Job, Prompt, Sample

ENGINE = click.option("--engine", type=click.Choice(["loky", "ray", "dask"]), default="loky")


def show(**figures: Any) -> None:
    """Prints figures as a line of JSON."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps(rounded), flush=True)


def quiet(text: str) -> None:
    """Shows nothing."""


@contextmanager
def folder() -> Iterator[Path]:
    """Gives a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class NotingGenerator(FakeGenerator):
    """Writes a line when it is built, and one for each batch with the trials in it.

    Args:
        trace: the file; "" = none.
        batch_size: jobs per batch.
        seconds: that a batch takes, beside the work of the fake.
        pictures: False = every sample is an error without a picture, for runs of many rows.
    """

    def __init__(
        self, trace: str = "", batch_size: int = 4, seconds: float = 0.0, pictures: bool = True
    ) -> None:
        super().__init__(batch_size)
        self._trace, self._seconds, self._pictures = trace, seconds, pictures
        self._note("built")

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Generates what the fake does, or errors."""
        self._note("batch", *(job.id for job in jobs))
        time.sleep(self._seconds)
        if self._pictures:
            return super().generate(jobs)
        return [Sample(job, None, cost=Cost(20), error="no picture, on purpose") for job in jobs]

    def _note(self, *words: str) -> None:
        if self._trace:
            with open(self._trace, "a", encoding="utf-8") as file:
                file.write(" ".join([words[0], str(os.getpid()), *words[1:]]) + "\n")


def fake_recipe(folder: Path, prompts: int, *overrides: str, **options: Any) -> Recipe:
    """Returns a recipe of fakes with that many prompts, best of 4 unless an override says other."""
    texts = [f"prompt {number}" for number in range(min(prompts, 1))]
    recipe = load_recipe("fake", [f"prompts={texts}", f"output={folder}", *overrides])
    generator = Section(NotingGenerator, options, "benchmark", {}, "fake")
    one = recipe.prompts[0]
    many = tuple(replace(one, id=f"{i:07d}", text=f"prompt {i}") for i in range(prompts))
    sections = {name: part for name, part in recipe.sections.items() if name != "judge"}
    return replace(recipe, prompts=many, sections={**sections, "generator": generator})


def batches(trace: Path) -> list[list[str]]:
    """Returns the trial ids of every batch in a trace."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return [line.split()[2:] for line in lines if line.startswith("batch")]


def processes(trace: Path) -> list[int]:
    """Returns the process of every time that the parts were built."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("built")]


def mean_fill(trace: Path, batch_size: int) -> float:
    """Returns how full the batches were, on average."""
    return float(np.mean([len(batch) / batch_size for batch in batches(trace)]))


@cache
def verifier_of(model: str) -> Verifier:
    """Returns a verifier, loaded once a process."""
    return Verifier.from_pretrained(model, heatmaps=False)


@cache
def random_pictures(count: int) -> list[np.ndarray]:
    """Returns that many random pictures of 504 x 504, made once a process."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (504, 504, 3), np.uint8) for _ in range(count)]


def score_item(item: tuple[str, int]) -> tuple[int, float]:
    """Scores pictures; the item is (model, how many).

    Returns:
        The process, and the seconds that loading took.
    """
    model, count = item
    pictures, began = random_pictures(count), time.perf_counter()
    verifier, load = verifier_of(model), time.perf_counter() - began
    if count:
        verifier.verify(pictures, ["a red circle"] * count, detail="score")
    return os.getpid(), load


@cache
def setup_of(recipe: bytes) -> RunSetup:
    """Returns the parts of a pickled recipe, built once a process."""
    return pickle.loads(recipe).build()


def search_item(item: tuple[bytes, Sequence[Prompt], Path]) -> tuple[int, float]:
    """Runs a recipe; the item is (pickled recipe, prompts, run folder).

    Returns:
        The process, and the seconds that building the parts took.
    """
    recipe, prompts, run = item
    began = time.perf_counter()
    setup, load = setup_of(recipe), time.perf_counter() - began
    if prompts:
        execute(setup, prompts, folder=run)
    return os.getpid(), load
