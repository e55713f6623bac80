"""What a run in shards costs, loses and keeps: the figures of SCALE.md.

    python examples/benchmarks/parallel.py overhead --engine loky
    python examples/benchmarks/parallel.py kills --engine ray
    python examples/benchmarks/parallel.py coordinator-kills --engine loky
    python examples/benchmarks/parallel.py same --engine dask
    python examples/benchmarks/parallel.py resume
    python examples/benchmarks/parallel.py fill
    python examples/benchmarks/parallel.py memory --prompts 100000

Each prints one line of JSON for each figure. All run on fakes; `parallel_gpus.py` measures models.
Wall-clock times mean something on idle cores only, so CPU times stand beside them.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from parallel_parts import (
    ENGINE,
    batches,
    fake_recipe,
    folder,
    mean_fill,
    processes,
    quiet,
    show,
)

from tts_verifier.log import read_header, read_rows
from tts_verifier.log.sharded import table_folders
from tts_verifier.parallel import open_engine, run_parallel
from tts_verifier.recipe import Recipe, run_recipe
from tts_verifier.recipe.parallel_options import ParallelOptions
from tts_verifier.runner import execute
from tts_verifier.runner.progress import Progress


def megabytes(process: int | str = "self") -> float:
    """Returns the memory of a process that is its own or shared, in MB."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return 0.0


def descendants() -> list[int]:
    """Returns all processes below this one."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                below.setdefault(parent, []).append(int(path.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def choices(run: Path) -> dict[str, bool]:
    """Returns trial id -> whether it is chosen, and fails if a trial has two rows."""
    rows = read_rows(run)
    assert len({row["trial_id"] for row in rows}) == len(rows)
    return {row["trial_id"]: row["chosen"] for row in rows}


@click.group()
def main() -> None:
    """Measures runs in shards."""


def imports_parts(item: Any) -> Any:
    """Is the work of an engine that only starts, and imports what a run needs."""
    import parallel_parts  # noqa: F401

    return item


@main.command()
@ENGINE
@click.option("--prompts", default=2000)
@click.option("--shard", default=64)
def overhead(engine: str, prompts: int, shard: int) -> None:
    """Compares one worker of an engine with one process's loop over the same shards."""
    with folder() as place:
        recipe = fake_recipe(place / "loop", prompts, batch_size=8)
        setup = recipe.build()
        began, cpu = time.perf_counter(), cpu_seconds()
        for start in range(0, prompts, shard):
            part = recipe.prompts[start : start + shard]
            execute(setup, part, folder=place / "loop" / f"{start:07d}")
        loop, loop_cpu = time.perf_counter() - began, cpu_seconds() - cpu
        began, cpu = time.perf_counter(), cpu_seconds()
        with open_engine(ParallelOptions(engine, workers=1), imports_parts) as workers:
            workers.submit(0, 0)
            while not workers.take(1.0):
                pass
            start_up = time.perf_counter() - began
            helpers = sum(map(megabytes, descendants()))
        start_up_cpu = cpu_seconds() - cpu
        options = [f"parallel.engine={engine}", "parallel.workers=1", f"parallel.shard={shard}"]
        recipe = fake_recipe(place / "run", prompts, *options, batch_size=8)
        began, cpu, own = time.perf_counter(), cpu_seconds(), time.process_time()
        run_parallel(recipe, say=quiet)
        wall, own = time.perf_counter() - began, time.process_time() - own
        session = read_header(place / "run")["sessions"][-1]
        show(
            figure="overhead",
            engine=engine,
            prompts=prompts,
            loop_seconds=loop,
            loop_cpu_seconds=loop_cpu,
            run_seconds=wall,
            run_cpu_seconds=cpu_seconds() - cpu,
            start_up_seconds=start_up,
            start_up_cpu_seconds=start_up_cpu,
            build_seconds=session["build_seconds"],
            coordinator_cpu_ms_per_prompt=1000 * own / prompts,
            ms_per_prompt=1000 * (wall - start_up - session["build_seconds"] - loop) / prompts,
            cpu_ms_per_prompt=1000 * (cpu_seconds() - cpu - start_up_cpu - loop_cpu) / prompts,
            driver_mb=megabytes(),
            engine_and_worker_mb=helpers,
        )


def cpu_seconds() -> float:
    """Returns the processor seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def killed_run(recipe: Recipe, trace: Path, kills: int, most_seconds: float) -> list[int]:
    """Runs a recipe while workers are killed at random instants; returns who was killed."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        rng = random.Random(0)
        while not over.wait(rng.uniform(0, most_seconds)) and len(killed) < kills:
            alive = set(processes(trace)) - set(killed)
            if alive:
                victim = rng.choice(sorted(alive))
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run_parallel(recipe, say=quiet)
    finally:
        over.set()
        killer.join()
    return killed


@main.command()
@ENGINE
@click.option("--kills", default=20)
@click.option("--seconds", default=8.0, help="Longest time between two kills.")
def kills(engine: str, kills: int, seconds: float) -> None:
    """Kills workers of a run at random instants, and compares with a run that nobody killed."""
    with folder() as place:
        prompts, batch = 400, 4
        run_recipe(fake_recipe(place / "one", prompts, batch_size=batch), say=quiet)
        options = [f"parallel.engine={engine}", "parallel.workers=2", "parallel.shard=20"]
        trace = place / "trace"
        recipe = fake_recipe(
            place / "run", prompts, *options, trace=str(trace), batch_size=batch, seconds=0.3
        )
        killed = killed_run(recipe, trace, kills, seconds)
        drawn = [trial for some in batches(trace) for trial in some]
        built = processes(trace)
        show(
            figure="kills",
            engine=engine,
            kills=len(killed),
            same=choices(place / "run") == choices(place / "one"),
            drawn_again=len(drawn) - len(set(drawn)),
            most_allowed=batch * len(killed),
            processes=len(set(built)),
            builds=len(built),
        )


@main.command()
@ENGINE
@click.option("--kills", default=10)
def coordinator_kills(engine: str, kills: int) -> None:
    """Kills the coordinator at random instants, its start included; the same command continues."""
    with folder() as place:
        prompts, batch, trace = 600, 4, place / "trace"
        run_recipe(fake_recipe(place / "one", prompts, batch_size=batch), say=quiet)
        rng, killed, began = random.Random(0), list[int](), time.perf_counter()
        command = [sys.executable, __file__, "one-run", engine, str(place), str(prompts)]
        while True:
            process = subprocess.Popen(command, start_new_session=True)
            seconds = rng.uniform(0, LONGEST[engine]) if len(killed) < kills else None
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed.append(process.pid)
        drawn = [trial for some in batches(trace) for trial in some]
        show(
            figure="kills of the coordinator",
            engine=engine,
            kills=len(killed),
            seconds=time.perf_counter() - began,
            same=choices(place / "run") == choices(place / "one"),
            drawn_again=len(drawn) - len(set(drawn)),
            most_allowed=2 * batch * len(killed),
            # loky's names of semaphores and folders have the process that made them.
            left_in_shared_memory=sum(
                any(f"-{pid}-" in name or f"_{pid}_" in name for pid in killed)
                for name in os.listdir("/dev/shm")
            ),
        )


LONGEST = {"loky": 8.0, "ray": 20.0, "dask": 12.0}
"""Seconds from a start to its kill, at most: some three times what an engine takes to start."""


@main.command(hidden=True)
@click.argument("engine")
@click.argument("place", type=click.Path(path_type=Path))
@click.argument("prompts", type=int)
def one_run(engine: str, place: Path, prompts: int) -> None:
    """Runs, or continues, what `coordinator-kills` kills."""
    options = [f"parallel.engine={engine}", "parallel.workers=2", "parallel.shard=20"]
    recipe = fake_recipe(
        place / "run", prompts, *options, trace=str(place / "trace"), batch_size=4, seconds=0.2
    )
    run_parallel(recipe, say=quiet)


@main.command()
@ENGINE
@click.option("--workers", default="1,2,4", help="Numbers of workers, with commas.")
def same(engine: str, workers: str) -> None:
    """Compares trials and choices on several numbers of workers with those of one process."""
    with folder() as place:
        prompts = 64
        run_recipe(fake_recipe(place / "one", prompts, batch_size=8), say=quiet)
        for count in map(int, workers.split(",")):
            options = [f"parallel.engine={engine}", f"parallel.workers={count}"]
            run = place / f"{count}"
            run_parallel(fake_recipe(run, prompts, *options, batch_size=8), say=quiet)
            equal = choices(run) == choices(place / "one")
            show(figure="same", engine=engine, workers=count, same=equal, rows=len(choices(run)))


@main.command()
def resume() -> None:
    """Stops a run three times and continues it with other workers and another engine."""
    with folder() as place:
        prompts, trace = 160, place / "trace"
        run_recipe(fake_recipe(place / "one", prompts, batch_size=4), say=quiet)
        plans = [("loky", 2), ("loky", 3), ("ray", 1)]
        for engine, workers in plans:
            options = [f"parallel.engine={engine}", f"parallel.workers={workers}"]
            recipe = fake_recipe(
                place / "run",
                prompts,
                *options,
                "parallel.shard=10",
                trace=str(trace),
                batch_size=4,
                seconds=0.2,
            )
            last = (engine, workers) == plans[-1]
            after(len(batches(trace)) + 40, trace, stop=not last)
            with suppress(KeyboardInterrupt):
                run_parallel(recipe, say=quiet)
        drawn = [trial for some in batches(trace) for trial in some]
        show(
            figure="resume",
            plans=plans,
            same=choices(place / "run") == choices(place / "one"),
            drawn_again=len(drawn) - len(set(drawn)),
        )


def after(count: int, trace: Path, *, stop: bool) -> None:
    """Sends Ctrl-C to this process once the trace has that many batches."""

    def wait() -> None:
        while len(batches(trace)) < count:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    if stop:
        threading.Thread(target=wait, daemon=True).start()


@main.command()
@click.option("--prompts", default=1024)
def fill(prompts: int) -> None:
    """Measures how full batches are, `adaptive` with one candidate at a time, by size of shard."""
    for shard in (64, 128, 256, prompts):
        with folder() as place:
            trace = place / "trace"
            recipe = fake_recipe(place, prompts, *ADAPTIVE, trace=str(trace), batch_size=8)
            setup = recipe.build()
            for start in range(0, prompts, shard):
                execute(setup, recipe.prompts[start : start + shard])
            show(figure="fill", shard=shard, fill=mean_fill(trace, 8), batches=len(batches(trace)))


ADAPTIVE = (
    "strategy={name: adaptive, strategy: {name: best_of_n, n: 32}, "
    "thresholds: {semantic_alignment: 0.8}, at_once: 1}",
)


@main.command()
@ENGINE
@click.option("--prompts", default=100_000)
def memory(engine: str, prompts: int) -> None:
    """Measures the coordinator's memory, the log's size and the time to find all finished."""
    with folder() as place:
        options = [f"parallel.engine={engine}", "parallel.workers=2"]
        recipe = fake_recipe(place / "run", prompts, *options, batch_size=64, pictures=False)
        progress, began = MemorySamples(), time.perf_counter()
        run_parallel(recipe, say=quiet, progress=progress)
        seconds, peak = time.perf_counter() - began, megabytes()
        samples = progress.megabytes
        tenth = max(len(samples) // 10, 1)
        run = place / "run"
        began = time.perf_counter()
        run_parallel(recipe, say=quiet)
        again = time.perf_counter() - began
        show(
            figure="memory",
            engine=engine,
            prompts=prompts,
            rows=4 * prompts,
            shards=len(table_folders(run)),
            seconds=seconds,
            first_tenth_mb=sum(samples[:tenth]) / tenth,
            last_tenth_mb=sum(samples[-tenth:]) / tenth,
            with_summary_mb=peak,
            log_mb=sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) / 1e6,
            resume_seconds=again,
        )


class MemorySamples(Progress):
    """Notes the coordinator's memory while shards are handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.megabytes: list[float] = []

    def show(self) -> None:
        """Is called about once a second, and after every shard."""
        self.megabytes.append(megabytes())


if __name__ == "__main__":
    main()
