"""Kills a run at random instants, continues it, and compares it with one that lived.

    python examples/benchmarks/kill_campaign.py --kills 100

Every episode is one run folder: a process runs a search on the fakes, is killed (SIGKILL)
after a random time, and is started again until the run ends. After each kill the log is read
as it lies on the disk. The last line is JSON: kills, judged trials that were lost, doubled or
altered, final choices and tables that differ from the uninterrupted run's, and the largest
number of drawings that one kill made necessary again, counted when a batch is begun: at most
one batch of 4. The status is 1 if any of these is not so.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from tts_verifier import run
from tts_verifier.log import read_rows
from tts_verifier.seams import Strategy
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.inpaint_reroll import InpaintReroll
from tts_verifier.strategies.seed_beam import SeedBeam
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Job, Sample

PROMPTS = [f"picture {i}" for i in range(6)]
STRATEGIES: dict[str, Strategy] = {
    "best_of_n": BestOfN(12),
    "seed_beam": SeedBeam(),
    "inpaint_reroll": InpaintReroll(),
}
BATCH = 4
CLOCK = {"draw_seconds", "judge_seconds"}


class Noted(FakeGenerator):
    """Notes in a file what it draws, and takes a moment for it."""

    def __init__(self, notes: Path) -> None:
        super().__init__(batch_size=BATCH, size=128)
        self.notes = notes

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Draws."""
        with self.notes.open("a") as file:
            file.write(f"{len(jobs)}\n")
        time.sleep(0.005)
        return super().generate(jobs)


def work(folder: str, strategy: str) -> None:
    path = Path(folder)
    verifier = FakeVerifier()
    run(PROMPTS, Noted(path.with_suffix(".notes")), verifier, STRATEGIES[strategy], folder=path)


def drawn(folder: Path) -> int:
    notes = folder.with_suffix(".notes")
    return sum(map(int, notes.read_text().split())) if notes.exists() else 0


def rows(folder: Path) -> dict[str, dict[str, object]]:
    """All rows on the disk without the clock, the marks of the end and the states."""
    if not folder.exists():
        return {}
    gone = CLOCK | {"chosen", "state_path", "state_sha256"}
    found = read_rows(folder)
    by_id = {r["trial_id"]: {k: v for k, v in r.items() if k not in gone} for r in found}
    assert len(by_id) == len(found), "doubled"
    return by_id


def final(folder: Path) -> list[dict[str, object]]:
    table = pq.read_table(folder / "trials.parquet").drop_columns(sorted(CLOCK))
    return sorted(table.to_pylist(), key=lambda row: str(row["trial_id"]))


def whole_run(folder: Path, strategy: str) -> tuple[float, int]:
    """Runs to the end in a process of its own; returns the seconds and what was drawn."""
    process = CONTEXT.Process(target=work, args=(str(folder), strategy))
    began = time.perf_counter()
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode
    return time.perf_counter() - began, drawn(folder)


def episode(folder: Path, strategy: str, limits: tuple[float, int], dice: random.Random) -> dict:
    """Kills until the run ends by itself or the kills are used up."""
    longest, most = limits
    found = {"kills": 0, "lost": 0, "altered": 0, "redrawn": 0}
    before: dict[str, dict[str, object]] = {}
    while True:
        process = CONTEXT.Process(target=work, args=(str(folder), strategy))
        seen = drawn(folder)
        process.start()
        process.join(dice.uniform(0, longest) if found["kills"] < most else None)
        if process.exitcode is not None:
            assert process.exitcode == 0, f"the run failed: {process.exitcode}"
            return found
        process.kill()
        process.join()
        found["kills"] += 1
        after = rows(folder)
        found["lost"] += len(before.keys() - after.keys())
        found["altered"] += sum(after[k] != row for k, row in before.items() if k in after)
        fresh = [r for k, r in after.items() if k not in before and r["kind"] != "look"]
        found["redrawn"] = max(found["redrawn"], drawn(folder) - seen - len(fresh))
        before = after


def campaign(kills: int, home: Path, seed: int) -> dict:
    dice = random.Random(seed)
    total = {"kills": 0, "episodes": 0, "lost": 0, "altered": 0, "redrawn": 0, "doubled": 0}
    total |= {"choices_changed": 0, "tables_changed": 0}
    whole: dict[str, tuple[float, list]] = {}
    while total["kills"] < kills:
        strategy = list(STRATEGIES)[total["episodes"] % len(STRATEGIES)]
        if strategy not in whole:
            seconds, _ = whole_run(home / strategy, strategy)
            whole[strategy] = (seconds, final(home / strategy))
        seconds, expected = whole[strategy]
        folder = home / f"episode{total['episodes']}"
        limits = (seconds * 0.6, kills - total["kills"])
        found = episode(folder, strategy, limits, dice)
        last = final(folder)
        chosen = [{r["trial_id"] for r in one if r["chosen"]} for one in (expected, last)]
        total["choices_changed"] += len(chosen[0] ^ chosen[1])
        total["tables_changed"] += last != expected
        total["doubled"] += len(last) - len({r["trial_id"] for r in last})
        total["redrawn"] = max(total["redrawn"], found.pop("redrawn"))
        for name, count in found.items():
            total[name] += count
        total["episodes"] += 1
        print(f"{strategy}: {found}, {total['kills']} of {kills} kills", flush=True)
        shutil.rmtree(folder)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to run [default: a temporary one]")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        total = campaign(options.kills, options.folder or Path(temporary), options.seed)
    print(json.dumps(total))
    bad = ("lost", "doubled", "altered", "choices_changed", "tables_changed")
    sys.exit(any(total[name] for name in bad) or total["redrawn"] > BATCH)


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kill_campaign"])

if __name__ == "__main__":
    main()
