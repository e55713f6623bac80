"""How much faster several GPUs are than one: the figures of SCALE.md.

    python examples/make_checkpoint.py FOLDER --size 3b --device cuda
    python examples/benchmarks/parallel_gpus.py scoring --model FOLDER --workers 1,2,4
    python examples/benchmarks/parallel_gpus.py search --model FOLDER --workers 1,2

Each prints a line of JSON for everything that is done, the figures among them. All workers are
started once; each loads its models, and then works until it is warm, before the first rate is
measured. While some work, the others wait. `processes` must be the number of workers, and `loads`
of a measured rate 0: then no time of loading is in it. Needs as many GPUs as workers, and two for
`search` with one worker that has both; with `--gpus 0` all of it computes on the CPU.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count as numbers
from pathlib import Path
from typing import Any

import click
from parallel_parts import ENGINE, folder, score_item, search_item, show

from tts_verifier.parallel import WorkerEngine, hand_out, open_engine
from tts_verifier.recipe import load_recipe
from tts_verifier.recipe.parallel_options import ParallelOptions

OPTIONS = (
    ENGINE,
    click.option("--model", required=True, help="A verifier's folder."),
    click.option("--workers", default="1,2", help="Numbers of workers, with commas."),
    click.option("--items", default=4, help="Items of each worker."),
    click.option("--gpus", default=1, help="GPUs of a worker; 0 = compute on the CPU."),
)


@click.group()
def main() -> None:
    """Measures models on several GPUs."""


def measured(function: Callable[..., None]) -> click.Command:
    """Makes a command of a function, with the options of all measurements."""
    for option in reversed(OPTIONS):
        function = option(function)
    return main.command()(function)


def rate(pool: WorkerEngine, items: Sequence[Any], pictures: int, **about: Any) -> float:
    """Hands items out, prints a line for each and one for all, and returns the pictures a second.

    Args:
        pool: the workers, which return the process and the seconds of loading.
        items: of the same work.
        pictures: of an item.
        about: values for each line.
    """
    processes, loads, began = set[int](), list[float](), time.perf_counter()
    for _, (process, load) in hand_out(pool, items):
        processes.add(process)
        loads += [load] if load > 0.1 else []
        show(**about, item_after_seconds=time.perf_counter() - began, load_seconds=load)
    seconds = time.perf_counter() - began
    show(
        **about,
        rate=pictures * len(items) / seconds,
        seconds=seconds,
        processes=len(processes),
        loads=len(loads),
    )
    return pictures * len(items) / seconds


def compare(
    options: ParallelOptions,
    work: Any,
    counts: Sequence[int],
    empty: Any,
    full: Iterable[Any],
    *,
    items: int,
    pictures: int,
) -> None:
    """Compares several numbers of workers with the first one, all of them in one pool.

    Args:
        options: of the pool; all numbers of workers are measured in it.
        work: loads models on its first call in a process.
        counts: numbers of workers.
        empty: an item that loads and does nothing.
        full: items without end.
        items: of each worker.
        pictures: of an item.
    """
    began, more = time.perf_counter(), iter(full)
    about = {"engine": options.engine, "gpus_of_a_worker": options.gpus}
    show(what="start", counts=counts, items=items, pictures=pictures, **about)
    with open_engine(options, work) as pool:
        most = pool.workers
        rate(pool, [empty] * most, 0, what="load", workers=most)
        rate(pool, [next(more) for _ in range(most)], pictures, what="warm", workers=most)
        show(what="ready", seconds=time.perf_counter() - began, **about)
        rates: dict[int, float] = {}
        for workers in counts:
            pool.most = workers
            todo = [next(more) for _ in range(items * workers)]
            rates[workers] = rate(pool, todo, pictures, what="rate", workers=workers)
            show(what="times", workers=workers, times=rates[workers] / rates[counts[0]], **about)


@measured
@click.option("--images", default=256, help="Images of an item.")
def scoring(engine: str, model: str, workers: str, items: int, gpus: int, images: int) -> None:
    """Compares the images that numbers of workers score in a second."""
    counts = [int(count) for count in workers.split(",")]
    options = ParallelOptions(engine, max(counts), gpus)
    full = ((model, images) for _ in numbers())
    compare(options, score_item, counts, (model, 0), full, items=items, pictures=images)


@measured
@click.option("--prompts", default=16, help="Prompts of an item.")
@click.option("--n", default=8, help="Candidates of a prompt.")
@click.option("--batch", default=32, help="Candidates that are generated and verified together.")
@click.option("--apart/--no-apart", default=True, help="Also one worker with two GPUs.")
def search(
    engine: str,
    model: str,
    workers: str,
    items: int,
    gpus: int,
    prompts: int,
    n: int,
    batch: int,
    apart: bool,
) -> None:
    """Compares `bestofn` on numbers of workers, and on one worker that has two GPUs."""
    counts = [int(count) for count in workers.split(",")]
    plans = [(counts, gpus, ""), ([1], 2, "verifier.device=cuda:1")]
    for numbers_of_workers, each, device in plans if apart and gpus else plans[:1]:
        recipe = load_recipe(
            "bestofn",
            [
                f"verifier.model={model}",
                f"prompts={['a red circle'] * prompts}",
                f"strategy.n={n}",
                f"generator.batch_size={batch}",
                # It computes on the CPU, and is no part of the search.
                "judge=null",
                *filter(None, [device]),
            ],
        )
        order = pickle.dumps(replace(recipe, prompts=()))
        with folder() as place:
            compare(
                ParallelOptions(engine, max(numbers_of_workers), each),
                search_item,
                numbers_of_workers,
                (order, (), Path()),
                ((order, recipe.prompts, place / f"{number}") for number in numbers()),
                items=items,
                pictures=prompts * n,
            )


if __name__ == "__main__":
    main()
