"""Tries the package with inputs and accidents that nobody wrote for it, and reports what happened.

    python examples/benchmarks/faults replies --cases 1000000
    python examples/benchmarks/faults images --seed 3 --seconds 120 --rows images.parquet
    python examples/benchmarks/faults images --seed 3 --only 174     # one case again, in full

The campaigns are replies, recipes, images, folders, kills, configs, prompts and threads; `all` is
each of them in turn. The last line of each is JSON: how many cases ended how (see `harness.py`),
and the slowest of them. Before it stand the cases that did not end as they should, with the
command that repeats one. The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

# Two cores are used by two processes; threads of libraries would only be in their way.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import harness, processes  # noqa: E402

CAMPAIGNS = ("replies", "recipes", "images", "folders", "kills", "configs", "prompts", "threads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("campaign", choices=[*CAMPAIGNS, "all"])
    parser.add_argument("--cases", type=int, help="how many [default: the campaign's]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0, help="begin no case later than this")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--rows", type=Path, help="a .parquet file for the result of every case")
    parser.add_argument("--only", type=int, help="carry out this case alone, in this process")
    options = parser.parse_args()
    names = CAMPAIGNS if options.campaign == "all" else [options.campaign]
    clean = [campaign(importlib.import_module(f"faults.{name}"), options) for name in names]
    sys.exit(not all(clean))


def campaign(module: ModuleType, options: argparse.Namespace) -> bool:
    """Runs one campaign and prints its report; returns whether it is clean."""
    began, worked = time.perf_counter(), _processor_time()
    with TemporaryDirectory(prefix="faults") as temporary:
        home = Path(temporary).resolve()
        if options.only is not None:
            tally = harness.run_here(module, [options.only], home, seed=options.seed)
            for _, result in tally.rows or []:
                print(result)
        else:
            tally = processes.run_many(
                module,
                options.cases or module.DEFAULT_CASES,
                home,
                seed=options.seed,
                workers=min(options.workers, getattr(module, "MOST_WORKERS", options.workers)),
                seconds=options.seconds,
                with_rows=options.rows is not None,
            )
    report(tally)
    if options.rows is not None:
        harness.write_rows(tally, options.rows)
    spent = {
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "processor_minutes": round((_processor_time() - worked) / 60, 2),
    }
    print(json.dumps({**tally.as_dict(), **spent}))
    return tally.clean


def _processor_time() -> float:
    """Returns the seconds of processor time of this process and of its children that ended."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def report(tally: harness.Tally) -> None:
    for kind in sorted({kind for kind, _ in tally.kinds}):
        counts = {o: n for (k, o), n in tally.kinds.items() if k == kind}
        print(f"{kind}: {', '.join(f'{n} {o}' for o, n in sorted(counts.items()))}")
    for (kind, outcome), listed in sorted(tally.bad.items()):
        print(f"\n{outcome.upper()}: {kind}, such as")
        for number, detail in listed[:3]:
            print(f"  {detail!r}")
            command = f"python examples/benchmarks/faults {tally.campaign}"
            print(f"  again: {command} --seed {tally.seed} --only {number}")


if __name__ == "__main__":
    main()
