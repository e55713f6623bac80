"""Many threads on one object: every result is the one that the same call gives alone.

A case is one object, shared by eight threads that call it fifty times each, with Python changing
threads every ten microseconds. A call counts as an item. The bundled verifier and generator serve
for the models; the other objects are those that read pictures and logs.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Thread
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from faults import runs
from faults.harness import Result, expect, judged, of_kind

THREADS, CALLS = 8, 50
LIMIT = 1200.0
MEMORY = 32 * 2**30
MOST_WORKERS = 1
"""The threads of one case fill the machine."""
CAPTIONS = ("a red circle", "two blue squares", "a green star", "three yellow triangles")


class Shared(NamedTuple):
    """An object in the hands of many threads."""

    call: Callable[[int], Any]
    """Number of the input -> a result that can be compared."""
    inputs: int
    """How many different inputs there are."""


def case(number: int, dice: random.Random, home: Path) -> list[Result]:
    """Lets eight threads use one object."""
    name = list(OBJECTS)[number % len(OBJECTS)]
    with of_kind(name):
        shared = OBJECTS[name](home)
        return stress(name, shared, THREADS, CALLS)


def stress(name: str, shared: Shared, threads: int, calls: int) -> list[Result]:
    """Returns how the calls of many threads ended, with one result for each way."""
    alone = [shared.call(i) for i in range(shared.inputs)]
    filters = list(warnings.filters)
    barrier = Barrier(threads)

    def work(thread: int) -> list[Result]:
        barrier.wait()
        return [_one(name, shared, alone, (thread * 7 + k) % shared.inputs) for k in range(calls)]

    with _hurried(), ThreadPoolExecutor(threads) as pool:
        results = [result for listed in pool.map(work, range(threads)) for result in listed]
    same = warnings.filters == filters
    results.append(Result(f"{name}: filters of warnings", "right" if same else "wrong"))
    counts: dict[Result, int] = {}
    for result in results:
        counts[result] = counts.get(result, 0) + 1
    return [result._replace(items=count) for result, count in counts.items()]


def _one(name: str, shared: Shared, alone: Sequence[Any], number: int) -> Result:
    try:
        found = shared.call(number)
        expect(_same(found, alone[number]), f"call {number}: {found} instead of {alone[number]}")
    except Exception as error:
        return judged(error, name)
    return Result(name, "right")


def _same(one: Any, other: Any) -> bool:
    """Returns whether results are equal; numbers that a batch rounds differently may be close."""
    if isinstance(one, float):
        return bool(np.isclose(one, other, rtol=0, atol=1e-4, equal_nan=True))
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=2 / 255))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(v, other[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@contextmanager
def _hurried() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


# -- the objects ----------------------------------------------------------------------------------


def _pictures() -> list[Image.Image]:
    return [Image.new("RGB", (24 + i, 24), (40 * i, 255 - 40 * i, 90)) for i in range(5)]


def _verifier(home: Path, detail: Any) -> Shared:
    from tts_verifier import Verifier
    from tts_verifier.shapes import render

    verifier, pictures = Verifier.from_pretrained("shapes"), [render(c, 0) for c in CAPTIONS]

    def call(number: int) -> Any:
        i, j = number % 4, number // 4
        verdict = verifier.verify([pictures[i]], [CAPTIONS[j]], detail=detail)[0]
        return dict(verdict.scores), verdict.text, verdict.boxes

    return Shared(call, 8)


def _rerank(home: Path) -> Shared:
    from tts_verifier.testing import FakeVerifier

    verifier, pictures = FakeVerifier(), _pictures()

    def call(number: int) -> Any:
        turned = pictures[number:] + pictures[:number]
        return [(r.index, r.objective) for r in verifier.rerank(turned, "a")]

    return Shared(call, 5)


def _pipeline(home: Path, *, callback: bool) -> Shared:
    from tts_verifier import BestOfN, wrap
    from tts_verifier.generators.diffusers.loading import BUNDLED_CALL, load_pipeline
    from tts_verifier.testing import FakeVerifier

    pipe = wrap(load_pipeline("shapes"), FakeVerifier(), strategy=BestOfN(2))
    options = {**BUNDLED_CALL, "num_inference_steps": 2}

    def call(number: int) -> Any:
        seen: list[int] = []

        def note(pipe: Any, step: int, time: Any, values: Any) -> Any:
            seen.append(step)
            return values

        more = {"callback_on_step_end": note} if callback else {}
        out = pipe(CAPTIONS[number % 4], seed=number, **options, **more)
        return [np.asarray(image, np.float64) / 255 for image in out.images], out.seed, seen

    return Shared(call, 6)


def _as_image(home: Path) -> Shared:
    from tts_verifier.images import as_image

    places = []
    for i, picture in enumerate(_pictures()):
        places.append(home / f"{i}.png")
        picture.save(places[-1])
    (home / "torn.png").write_bytes(places[0].read_bytes()[:60])
    places.append(home / "torn.png")

    def call(number: int) -> Any:
        try:
            return as_image(places[number]).tobytes()
        except ValueError as error:
            return str(error)

    return Shared(call, 6)


def _files(home: Path) -> Shared:
    from tts_verifier.scoring import score_files
    from tts_verifier.testing import FakeVerifier

    paths = []
    for i, picture in enumerate(_pictures()):
        paths.append(str(home / f"{i}.png"))
        picture.save(paths[-1])
    verifier = FakeVerifier()
    return Shared(lambda n: score_files(verifier, paths[n:], "a cat"), 5)


def _log(home: Path) -> Shared:
    """A log that is read while it is written; what is there is right, and grows."""
    from tts_verifier.log import read_picks, read_rows, read_trials

    recipe = runs.write_recipe(home / "log.yaml", "inpaint_reroll")
    folder = runs.make_run(home / "finished", recipe)
    ids = [row["trial_id"] for row in read_rows(folder)]

    def call(number: int) -> Any:
        trials = read_trials(folder)
        trial = trials[number]
        assert trial.image is not None
        picks = read_picks(folder, ids)
        return trial.id, trial.image.load().tobytes(), sorted(picks), dict(trial.verdict.scores)

    return Shared(call, 6)


def _growing_log(home: Path) -> Shared:
    from tts_verifier.log import read_rows
    from tts_verifier.recipe import load_recipe, run_recipe

    recipe = runs.write_recipe(home / "more.yaml", "inpaint_reroll")
    true = runs.rows_by_id(runs.make_run(home / "true", recipe), dropped=(*runs.CLOCK, *runs.LATE))
    folder = runs.make_run(home / "growing", recipe, batches=1)
    # Not the command, which is alone in its process and may set how warnings are shown.
    checked = load_recipe(recipe)
    writer = Thread(target=lambda: run_recipe(checked, output=folder, say=lambda text: None))
    writer.start()

    def call(number: int) -> Any:
        for row in read_rows(folder):
            whole = true[row["trial_id"]]
            expect(all(row[k] == whole[k] for k in whole if k in row), f"{row['trial_id']} differs")
        return True

    return Shared(call, 1)


OBJECTS: Mapping[str, Callable[[Path], Shared]] = {
    "as_image": _as_image,
    "rerank": _rerank,
    "score_files": _files,
    "a finished log": _log,
    "a log that grows": _growing_log,
    "wrapped pipeline": lambda home: _pipeline(home, callback=False),
    "wrapped pipeline with callbacks": lambda home: _pipeline(home, callback=True),
    "verifier, scores": lambda home: _verifier(home, "score"),
    "verifier, whole replies": lambda home: _verifier(home, "diagnose"),
}
"""What is shared -> what makes it."""
LIGHT = ("as_image", "rerank", "score_files", "a finished log", "a log that grows")
"""Those that need no model."""
DEFAULT_CASES = len(OBJECTS)
