"""SIGKILL at chosen and at random moments of every command, after which the same command goes on.

A case is an episode: a command is started, killed and started again, up to six times, and then may
end. Half of the kills strike just before a step that changes the disk (a file opened, renamed,
flushed, removed …), the others at a random time. After every kill the disk is read as it lies: no
verified trial and no score is lost, doubled or altered. What a kill makes necessary again is
counted when it begins: at most one batch of images is generated again, and one verified again. At
the end, rows, files and pages are those of a command that was not interrupted. A kill counts as an
item.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from PIL import Image

from faults import runs
from faults.harness import Result, expect, of_kind
from tts_verifier.testing import FakeGenerator, FakeVerifier

DEFAULT_CASES = 500
LIMIT = 120.0
MOST_KILLS = 6
BATCH = 4
"""Images of a batch."""
_STEPS = frozenset(
    {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "fcntl.flock"}
)

_shared: dict[str, Any] = {}


def _nothing(place: Path) -> None:
    """Leaves an empty folder."""


class Job(NamedTuple):
    """A command to kill."""

    arguments: Callable[[Path], Sequence[object]]
    """Its name and arguments, given the folder of the case."""
    result: str
    """What it writes: "run", "rejudged", or the name of a file."""
    start: Callable[[Path], object] = _nothing
    """Prepares the folder of the case."""


def prepare(home: Path) -> None:
    """Notes what every command gives, and how many steps it takes, when nobody kills it."""
    import pandas  # noqa: F401 - pyarrow would import it in every process anew

    # Strategies with rounds, maps that are repainted, states that are kept, and verdicts behind.
    _shared["jobs"] = jobs = dict(_jobs(home))
    with runs.no_waiting_for_the_disk():
        recipe = runs.write_recipe(home / "source.yaml", "best_of_n")
        runs.make_run(home / "source", recipe)
    pictures = home / "pictures"
    pictures.mkdir(exist_ok=True)
    # More than a batch of `tts-score`.
    for number in range(80):
        Image.new("RGB", (8, 8), (number, 3 * number, 255 - number)).save(
            pictures / f"{number}.png"
        )
    (pictures / "broken.png").write_bytes(b"no picture")
    _shared["whole"] = whole = {}
    for name, job in jobs.items():
        # In the same place as the cases: pages and rejudged rows have relative paths.
        place = _fresh(home / "case", job)
        began = time.perf_counter()
        steps = _start(job, place, None).wait(None)
        seconds = time.perf_counter() - began
        whole[name] = (_outcome(job, place), steps, seconds)


def _jobs(home: Path) -> Iterator[tuple[str, Job]]:
    def running(recipe: Path, *more: object) -> Callable[[Path], Sequence[object]]:
        return lambda place: ("run", recipe, *more, "--quiet", "--output", place / "run")

    def scoring(name: str) -> Callable[[Path], Sequence[object]]:
        given = (home / "pictures", "--prompt", "a", "--verifier", "fake")
        return lambda place: ("score", *given, "--output", place / name)

    for strategy in runs.STRATEGIES:
        for overlap in (False, True):
            name = f"tts-run {strategy}{', overlap' if overlap else ''}"
            recipe = runs.write_recipe(home / f"{name}.yaml", strategy, overlap=overlap)
            yield name, Job(running(recipe), "run")
    source, recipe = home / "source", home / "source.yaml"
    yield (
        "tts-run, more of a run",
        Job(
            running(recipe, "strategy.n=7"),
            "run",
            lambda place: shutil.copytree(source, place / "run"),
        ),
    )
    yield "tts-run --rejudge", Job(running(recipe, "--rejudge", source), "rejudged")
    for name in ("out.jsonl", "out.parquet"):
        yield f"tts-score to {name[3:]}", Job(scoring(name), name)
    yield "tts-score to a folder", Job(scoring("out"), "out")
    page, plot = "page.html", "plot.svg"
    yield "tts-report", Job(lambda p: ("report", source, "--output", p / page), page)
    inline = "tts-report --inline"
    yield inline, Job(lambda p: ("report", source, "--inline", "--output", p / page), page)
    yield "tts-replay", Job(lambda p: ("replay", source, "--plot", p / plot), plot)


def _fresh(place: Path, job: Job) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    job.start(place)
    return place


def case(number: int, dice: random.Random, home: Path) -> Result:
    """Kills one command until it has been killed often enough, and lets it end."""
    names = list(_shared["jobs"])
    # Runs have most to lose; every command has its turn.
    name = names[number % len(names)]
    job = _shared["jobs"][name]
    expected, steps, seconds = _shared["whole"][name]
    place = _fresh(home / "case", job)
    kills, before = 0, _lying(job, place)
    wasted = dict.fromkeys(_AGAIN, 0)
    with of_kind(name):
        for _ in range(dice.randint(1, MOST_KILLS)):
            # Early rather than late: a command that goes on has less to do than the first.
            share = dice.random() ** 1.5
            at_step = 1 + int(share * steps) if dice.random() < 0.5 else None
            process = _start(job, place, at_step)
            if process.wait(None if at_step else share * seconds) is not None:
                break
            kills += 1
            after = _lying(job, place)
            _check_kept(job, before, after)
            wasted = _check_work(job, place, after, wasted)
            before = after
        else:
            expect(_start(job, place, None).wait(None) is not None)
        found = _outcome(job, place)
        if job.result in ("run", "rejudged"):
            runs.check_finished(place / "run", expected["rows"])
        for part, value in expected.items():
            expect(found[part] == value, f"{part} differs: {_difference(value, found[part])}")
    return Result(name, "right", items=kills)


# -- a process ------------------------------------------------------------------------------------


class Process:
    """A child of this process that runs a command."""

    def __init__(self, pid: int, place: Path) -> None:
        self._pid, self._place = pid, place

    def wait(self, seconds: float | None) -> int | None:
        """Waits for the end, or kills it after some seconds.

        Returns:
            The steps that it took; None if it was killed.
        """
        pid, status = self._pid, 0
        until = time.perf_counter() + (seconds if seconds is not None else 1e9)
        while True:
            done, status = os.waitpid(pid, os.WNOHANG if seconds is not None else 0)
            if done:
                break
            if time.perf_counter() > until:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                break
            time.sleep(0.0005)
        if os.WIFSIGNALED(status):
            return None
        text = (self._place / "ended").read_text()
        expect(os.WEXITSTATUS(status) == 0, f"the command failed: {text[-300:]}")
        return int(text)


def _start(job: Job, place: Path, kill_at: int | None) -> Process:
    """Starts a command; it kills itself before a step."""
    pid = os.fork()
    if pid:
        return Process(pid, place)
    code, text = 1, ""
    try:
        steps, step = _count_steps(place, kill_at)
        _note_work(place, step)
        name, *arguments = job.arguments(place)
        runs.command(str(name), *arguments)
        code, text = 0, str(next(steps))
    except BaseException:
        text = traceback.format_exc()
    finally:
        (place / "ended").write_text(text)
        os._exit(code)


def _count_steps(place: Path, kill_at: int | None) -> tuple[Iterator[int], Callable[[], None]]:
    """Counts what this process does to the disk below a folder, and returns what counts."""
    steps, root = itertools.count(), f"{place}/"

    def step() -> None:
        if next(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "fcntl.flock" or (event in _STEPS and str(arguments[0]).startswith(root)):
            step()

    sys.addaudithook(hook)
    os.fsync = lambda descriptor: step()
    return steps, step


_AGAIN = ("generated", "verified")


def _note_work(place: Path, step: Callable[[], None]) -> None:
    """Makes the fakes count as steps, note what they begin, and take a moment as real work does."""
    notes = {n: os.open(place / n, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for n in _AGAIN}
    generate, verify = FakeGenerator.generate, FakeVerifier.verify

    def noted_generate(self: FakeGenerator, jobs: Any) -> Any:
        os.write(notes["generated"], f"{len(jobs)}\n".encode())
        step()
        time.sleep(0.003)
        return generate(self, jobs)

    def noted_verify(self: FakeVerifier, images: Any, prompts: Any, **options: Any) -> Any:
        os.write(notes["verified"], f"{len(prompts)}\n".encode())
        step()
        time.sleep(0.003)
        return verify(self, images, prompts, **options)

    FakeGenerator.generate = noted_generate  # type: ignore[method-assign]
    FakeVerifier.verify = noted_verify  # type: ignore[method-assign]


# -- what lies on the disk ------------------------------------------------------------------------


def _lying(job: Job, place: Path) -> dict[str, Any]:
    """Returns the rows that lie on the disk after a kill, or the whole file, by name."""
    if job.result in ("run", "rejudged"):
        folder = place / "run"
        if not folder.exists():
            return {}
        return runs.rows_by_id(folder, dropped=(*runs.CLOCK, *runs.LATE))
    path = place / job.result
    if path.suffix == ".parquet":
        lines = path.with_name(f"{path.name}.lines")
        table = _rows_of(path) if path.exists() else []
        return _lines(lines) | {row["image"]: row for row in table}
    if path.suffix == ".jsonl":
        return _lines(path)
    if job.result == "out":
        parts = [row for part in sorted(path.glob("*.parquet")) for row in _rows_of(part)]
        # After a kill, lines that are a part already may still be there.
        added = [row for lines in path.glob(".*.jsonl") for row in _lines(lines).values()]
        expect(len({row["image"] for row in parts}) == len(parts), "a picture is in two rows")
        return {row["image"]: row for row in [*added, *parts]}
    return {path.name: path.read_bytes()} if path.exists() else {}


def _rows_of(table: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    return rows


def _lines(path: Path) -> dict[str, Any]:
    """Returns the whole lines of a file of scores by image; a kill may cut the last one short."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    rows = [json.loads(line) for line in whole.splitlines()]
    expect(len({row["image"] for row in rows}) == len(rows), "a picture is scored twice")
    return {row["image"]: row for row in rows}


def _check_kept(job: Job, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    lost = sorted(before.keys() - after.keys())
    expect(not lost, f"lost: {lost[:3]}")
    if job.result.startswith("out"):
        # A column that only failed pictures have is null in the table.
        same = all(after[k]["objective"] == row["objective"] for k, row in before.items())
        expect(same, "scores were altered")
        return
    altered = [k for k, row in before.items() if after[k] != row]
    expect(not altered, f"altered: {altered[:3]}")


def _check_work(
    job: Job, place: Path, after: Mapping[str, Any], wasted: Mapping[str, int]
) -> dict[str, int]:
    """Raises WrongError where one kill makes more than a batch necessary again."""
    begun = {n: _sum(place / n) for n in _AGAIN}
    if job.result != "run" or job.start is not _nothing:
        return dict(wasted)
    noted = [json.loads(path.read_bytes()) for path in (place / "run" / "waiting").glob("*.json")]
    unverified = {name for notes in noted for name in notes if name not in after}
    images = sum(row["kind"] != "look" for row in after.values())
    safe = {"generated": images + len(unverified), "verified": len(after)}
    lost = {n: begun[n] - safe[n] for n in _AGAIN}
    for n in _AGAIN:
        expect(lost[n] - wasted[n] <= BATCH, f"{lost[n] - wasted[n]} {n} again after one kill")
    return lost


def _sum(path: Path) -> int:
    return sum(map(int, path.read_text().split())) if path.exists() else 0


def _outcome(job: Job, place: Path) -> dict[str, Any]:
    """Returns what a command that ended has left."""
    if job.result in ("run", "rejudged"):
        folder = place / "run"
        files = sorted(
            p.relative_to(folder).as_posix()
            for p in folder.rglob("*")
            if p.is_file() and p.parent.name != "aside"
        )
        chosen = {p.name: p.read_bytes() for p in sorted(folder.glob("chosen/*"))}
        return {"rows": runs.rows_by_id(folder), "files": files, "chosen": chosen}
    path = place / job.result
    if path.suffix == ".parquet":
        left = sorted(p.name for p in place.iterdir() if p.name not in (*_AGAIN, "ended"))
        return {"rows": pq.read_table(path).to_pylist(), "files": left}
    if path.suffix == ".jsonl":
        return {"rows": sorted(_lines(path).items())}
    if job.result == "out":
        hidden = [p.name for p in path.iterdir() if p.name.startswith(".")]
        return {"rows": sorted(_lying(job, place).items()), "hidden": hidden}
    content = path.read_bytes()
    return {path.name: content}


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, list) and isinstance(other, list):
        missing = [x for x in one if x not in other]
        return f"missing {missing[:2]}, too many {[x for x in other if x not in one][:2]}"[:250]
    return f"{str(one)[:100]} and {str(other)[:100]}"
