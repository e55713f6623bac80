"""Kills a run at random instants, continues it, and compares it with an uninterrupted run.

    python examples/benchmarks/kill_campaign.py --kills 100
    python examples/benchmarks/kill_campaign.py --kills 100 --overlap
    python examples/benchmarks/kill_campaign.py --kills 100 --only inpaint_reroll

Every episode is one run folder. A process runs a search on the fakes, is killed (SIGKILL) at a
random instant of its work and is started again, up to twelve times; then it may end. Strategies
alternate; one of them repaints, looks, and repaints repaints. After each kill the script reads the
log as it lies on the disk. The last line is JSON: the kills; the verified trials that were lost,
doubled or altered; the choices and tables that differ from those of the uninterrupted run; and
the most generations and verifications that one kill made necessary again. These are counted when
they begin: at most one batch of 4 is generated again, and at most one verified again. The exit
status is 1 if anything else is found.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tts_verifier import run
from tts_verifier.interfaces import Strategy
from tts_verifier.log import read_rows
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.inpaint_reroll import InpaintReroll
from tts_verifier.strategies.seed_beam import SeedBeam
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Job, Sample, Verdict

PROMPTS = [f"picture {i}" for i in range(6)]
STRATEGIES: dict[str, Strategy] = {
    "best_of_n": BestOfN(12),
    "seed_beam": SeedBeam(),
    # The fakes' maps are warm everywhere: only their hottest tenth is repainted.
    "inpaint_reroll": InpaintReroll(
        2, 5, masks={"threshold": "quantile", "level": 0.9, "area": (0.0, 1.0)}
    ),
}
BATCH = 4
KILLS = 12
"""Most kills of one folder: every strategy gets its turn."""
CLOCK = {"generate_seconds", "verify_seconds"}
AGAIN = ("generated_again", "verified_again")


class Case(NamedTuple):
    """What is run."""

    strategy: str
    overlap: bool


def note_work(notes: Path, count: int) -> None:
    """Appends to a file how many items begin, then takes a moment, as real work would."""
    with notes.open("a") as file:
        file.write(f"{count}\n")
    time.sleep(0.01)


class NotedGenerator(FakeGenerator):
    """Notes how many images it begins."""

    def __init__(self, notes: Path) -> None:
        super().__init__(batch_size=BATCH, size=128)
        self.notes = notes

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Notes the jobs and carries them out."""
        note_work(self.notes, len(jobs))
        return super().generate(jobs)


class NotedVerifier(FakeVerifier):
    """Notes how many verifications it begins."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.notes = notes

    def verify(self, images: Any, prompts: Sequence[str], **options: Any) -> list[Verdict]:
        """Notes the images and verifies them."""
        note_work(self.notes, len(prompts))
        return super().verify(images, prompts, **options)


def work(folder: Path, case: Case, ready: Connection) -> None:
    """Runs in a process of its own; sends a number when its work begins, then its seconds."""
    parts = (
        NotedGenerator(folder.with_suffix(".generated")),
        NotedVerifier(folder.with_suffix(".verified")),
    )
    ready.send(0.0)
    began = time.perf_counter()
    run(
        PROMPTS,
        *parts,
        STRATEGIES[case.strategy],
        folder=folder,
        overlap=case.overlap,
        detail="score" if case.strategy == "inpaint_reroll" else "diagnose",
    )
    ready.send(time.perf_counter() - began)


def begun(folder: Path) -> dict[str, int]:
    """Returns how many generations and verifications began so far."""
    notes = {name: folder.with_suffix(f".{name.removesuffix('_again')}") for name in AGAIN}
    return {n: sum(map(int, p.read_text().split())) if p.exists() else 0 for n, p in notes.items()}


def safe(folder: Path, rows: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    """Returns how many of them are on the disk: as rows, or noted as unverified samples."""
    noted = [json.loads(path.read_text()) for path in (folder / "waiting").glob("*.json")]
    unverified = {name for notes in noted for name in notes if name not in rows}
    images = sum(row["kind"] != "look" for row in rows.values())
    return {"generated_again": images + len(unverified), "verified_again": len(rows)}


def rows(folder: Path) -> dict[str, dict[str, object]]:
    """Returns all rows on the disk, without times, nulls and what only the end of a run fills in.

    Nulls say nothing: a column that a later batch brought, such as a heatmap's, is null in the
    rows before it.
    """
    if not folder.exists():
        return {}
    dropped = CLOCK | {"chosen", "state_path", "state_sha256"}
    all_rows = read_rows(folder)
    by_id = {
        row["trial_id"]: {k: v for k, v in row.items() if k not in dropped and v is not None}
        for row in all_rows
    }
    assert len(by_id) == len(all_rows), "doubled"
    return by_id


def final(folder: Path) -> list[dict[str, object]]:
    table = pq.read_table(folder / "trials.parquet").drop_columns(sorted(CLOCK))
    return sorted(table.to_pylist(), key=lambda row: str(row["trial_id"]))


def start(folder: Path, case: Case) -> tuple[ForkServerProcess, Connection]:
    """Starts a process and waits until its work begins."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=work, args=(folder, case, there))
    process.start()
    there.close()
    here.recv()
    return process, here


def whole_run(folder: Path, case: Case) -> float:
    """Runs to the end in a process of its own; returns the seconds of its work."""
    process, pipe = start(folder, case)
    process.join()
    assert process.exitcode == 0, f"the run failed: {process.exitcode}"
    return float(pipe.recv())


def episode(folder: Path, case: Case, limits: tuple[float, int], dice: random.Random) -> dict:
    """Kills until the run ends by itself or the kills are used up."""
    longest, most = limits
    counts = {"kills": 0, "lost": 0, "altered": 0, **dict.fromkeys(AGAIN, 0)}
    wasted = dict.fromkeys(AGAIN, 0)
    before: dict[str, dict[str, object]] = {}
    while True:
        process, _ = start(folder, case)
        process.join(dice.uniform(0, longest) if counts["kills"] < most else None)
        if process.exitcode is not None:
            assert process.exitcode == 0, f"the run failed: {process.exitcode}"
            return counts
        process.kill()
        process.join()
        counts["kills"] += 1
        after = rows(folder)
        counts["lost"] += len(before.keys() - after.keys())
        counts["altered"] += sum(after[k] != row for k, row in before.items() if k in after)
        before = after
        lost_work = {
            name: count - safe(folder, after)[name] for name, count in begun(folder).items()
        }
        for name in AGAIN:
            counts[name] = max(counts[name], lost_work[name] - wasted[name])
        wasted = lost_work


def campaign(kills: int, home: Path, seed: int, cases: Sequence[Case]) -> dict:
    dice = random.Random(seed)
    zero = ("kills", "episodes", "lost", "altered", "doubled", "choices_changed", "tables_changed")
    total = dict.fromkeys((*zero, *AGAIN, "repaints"), 0)
    whole: dict[Case, tuple[float, list]] = {}
    while total["kills"] < kills:
        case = cases[total["episodes"] % len(cases)]
        if case not in whole:
            seconds = whole_run(home / case.strategy, case)
            whole[case] = (seconds, final(home / case.strategy))
        seconds, expected = whole[case]
        folder = home / f"episode{total['episodes']}"
        counts = episode(folder, case, (seconds * 0.6, min(kills - total["kills"], KILLS)), dice)
        last = final(folder)
        chosen = [{r["trial_id"] for r in one if r["chosen"]} for one in (expected, last)]
        total["choices_changed"] += len(chosen[0] ^ chosen[1])
        total["repaints"] += sum(row["kind"] == "repaint" for row in last)
        total["tables_changed"] += last != expected
        total["doubled"] += len(last) - len({r["trial_id"] for r in last})
        for name, count in counts.items():
            total[name] = max(total[name], count) if name in AGAIN else total[name] + count
        total["episodes"] += 1
        print(f"{case.strategy}: {counts}, {total['kills']} of {kills} kills", flush=True)
        shutil.rmtree(folder)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to run [default: a temporary one]")
    parser.add_argument("--overlap", action="store_true", help="verify while the next is generated")
    parser.add_argument("--only", nargs="+", choices=list(STRATEGIES), help="strategies")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        cases = [Case(name, options.overlap) for name in options.only or STRATEGIES]
        total = campaign(options.kills, options.folder or Path(temporary), options.seed, cases)
    print(json.dumps(total))
    bad = ("lost", "doubled", "altered", "choices_changed", "tables_changed")
    sys.exit(any(total[name] for name in bad) or max(total[name] for name in AGAIN) > BATCH)


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kill_campaign"])

if __name__ == "__main__":
    main()
