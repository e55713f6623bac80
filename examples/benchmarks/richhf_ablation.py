"""Runs the published ablation of ImageDoctor's training on the miniature RichHF, and prints it.

    python examples/benchmarks/richhf_ablation.py --out runs/ablation --seeds 0 1 2
    python examples/benchmarks/richhf_ablation.py --out runs/ablation --seeds 0 --rows all --minutes 8
    python examples/benchmarks/richhf_ablation.py --figures FOLDER --seeds     # the table alone

For each seed: answers alone (stage 1), reasons and heatmaps (stage 2), and from stage 2 three runs:
GRPO, GRPO without the rewards of boxes, and more of stage 2 for the seconds that GRPO took. Every
row is measured on the same held-out pictures. `--rows all` adds the start, stage 1 with heatmaps,
and stage 2 without look (no regions) and without think (no objects, no checks). The published row
"without task token" is not here: no such network is.

Stages are as long as the paper's, in epochs. What is finished stays in --out (20 MB a row), and the
same command goes on with the rest; --minutes ends the training in between. --figures gets two small
files a seed: what each row says of each picture, and every step. Tables are made of these alone, so
seeds may come from several machines. `--set` changes keys of an entry, `--also` adds a GRPO row:

    … --set grpo beta=0.1 --also grpo-slow learning_rate=3e-5 steps=300

Intervals are of paired bootstraps over pictures and seeds. ABLATION.md explains the choices.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from ablation_figures import print_figures
from pyarrow import parquet

from tts_verifier.errors import RunError, TTSError
from tts_verifier.evaluation.evaluate import evaluate
from tts_verifier.training.cold_start.sources import read_reasons
from tts_verifier.training.common.run_folder import read_metrics
from tts_verifier.training.entries import run_entry
from tts_verifier.training.grpo.rewards import GROUNDING_REWARDS, REWARDS, total_rewards
from tts_verifier.training.grpo.rewards.completions import read_boxes
from tts_verifier.training.miniature.verifier.target_replies import REGIONS_START
from tts_verifier.training.richhf.dataset import read_split
from tts_verifier.training.settings_file import claim_folder
from tts_verifier.types import Detail
from tts_verifier.verifiers.imagedoctor.verifier import ImageDoctor

TEST_SPLIT = "test_more"
START = "start"
NO_GROUNDING = "{" + ", ".join(f"{n}: 1" for n in REWARDS if n not in GROUNDING_REWARDS) + "}"
FEW_STEPS = 3
"""Steps at the start of a run that are no measure of its rate."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    parent: str
    """The row whose checkpoint it starts from."""
    entry: str
    """That trains it."""
    keys: tuple[str, ...] = ()
    """What its config changes, as `tts-train` takes it."""
    detail: Detail = "diagnose"
    """How it is judged."""
    heatmaps: bool = True
    """Whether it has learned any."""


ROWS = {
    "stage-1": Row(START, "cold-start-1", (), "score", heatmaps=False),
    "stage-2": Row("stage-1", "cold-start-2", ("reasons=null",)),
    "grpo": Row("stage-2", "grpo"),
    "grpo-no-grounding": Row("stage-2", "grpo", (f"rewards={NO_GROUNDING}",)),
    "more-stage-2": Row("stage-2", "cold-start-2", ("reasons=null",)),
    "stage-1-maps": Row(START, "cold-start-2", ("reasons=null", "answer_only_share=1.0"), "score"),
    "no-look": Row("stage-1", "cold-start-2", ("reasons={out}/no-look.jsonl",)),
    "no-think": Row("stage-1", "cold-start-2", ("reasons={out}/no-think.jsonl",)),
}
DEFAULT_ROWS = ("stage-1", "stage-2", "grpo", "more-stage-2", "grpo-no-grounding")
EPOCHS = {"cold-start-1": 5, "cold-start-2": 3}


class Ablation:
    """Trains and measures the rows of one seed.

    Args:
        options: of the command line.
        rows: of the table, by name, parents first.
        seed: of every run.
    """

    def __init__(self, options: argparse.Namespace, rows: dict[str, Row], seed: int) -> None:
        self.options, self.rows, self.seed = options, rows, seed
        self.out, self.data = Path(options.out), Path(options.out) / "data"
        self.folder = self.out / f"seed-{seed}"

    def run(self, seconds_left: Callable[[], float]) -> bool:
        """Makes what is missing and returns whether everything is there."""
        pictures = read_split(self.data, TEST_SPLIT).pictures
        for name, row in self.rows.items():
            where, measured = self.folder / name, self.folder / f"{name}.parquet"
            if measured.exists():
                continue
            if seconds_left() <= 0:
                return False
            began = time.monotonic()
            try:
                if name != START and not self.train(name, row, seconds_left() / 60):
                    return False
                self.measure(
                    row, self.init if name == START else where / "checkpoint", pictures, measured
                )
            except TTSError as error:
                print(f"{name} failed: {error}", flush=True)
                continue
            print(f"seed {self.seed}, {name}: {time.monotonic() - began:.0f} s", flush=True)
        return True

    @property
    def init(self) -> str:
        """The checkpoint that the first stage starts from."""
        return str(self.options.init)

    def train(self, name: str, row: Row, minutes: float) -> bool:
        """Trains a row, or what is left of it, and returns whether it is trained to its end."""
        where = self.folder / name
        parent = self.init if row.parent == START else self.folder / row.parent / "checkpoint"
        steps = self.steps_of(name, row)
        keys = [f"init={parent}", f"data={self.data}", f"output={where}", f"seed={self.seed}"]
        keys += [f"steps={steps}", f"minutes={minutes:.3f}", "examples=0", "trackers=[]"]
        keys += ["in_memory=true", "recompute=false", "block=null", "dtype=float16"]
        if row.entry != "grpo":
            keys += [f"batch={self.options.batch}", f"workers={self.options.workers}"]
        chosen = [text.format(out=self.out) if "{out}" in text else text for text in row.keys]
        run_entry(row.entry, row.entry, [*keys, *changes_of(self.options.set, row.entry), *chosen])
        gc.collect()
        taken = read_metrics(where)[-1]["step"] + 1
        if taken == steps:
            shutil.rmtree(where / "state", ignore_errors=True)
        return taken == steps

    def steps_of(self, name: str, row: Row) -> int:
        """Returns the steps of a row: some epochs, or the time that GRPO took."""
        options = self.options
        if row.entry == "grpo":
            changed = dict(k.split("=", 1) for k in (*changes_of(options.set, "grpo"), *row.keys))
            return int(changed.get("steps", options.grpo_steps))
        if name == "more-stage-2":
            spent = sum(step["seconds"] for step in read_metrics(self.folder / "grpo"))
            usual = [step["seconds"] for step in read_metrics(self.folder / "stage-2")]
            if not (spent and usual):
                raise RunError("more-stage-2 takes as long as grpo: it needs stage-2 and grpo.")
            return max(1, round(spent / statistics.mean(usual[FEW_STEPS:] or usual)))
        return max(1, round(EPOCHS[row.entry] * options.train / options.batch))

    def measure(self, row: Row, checkpoint: Any, pictures: Sequence[Any], path: Path) -> None:
        """Judges the test pictures, and writes a row of a table for each."""
        verifier = ImageDoctor.from_pretrained(checkpoint, heatmaps=row.heatmaps)
        few = -(-len(pictures) // self.options.threads)
        parts = [pictures[i : i + few] for i in range(0, len(pictures), few)]
        # Comparing two maps of 384 x 384 takes longer than making them.
        with ThreadPoolExecutor(self.options.threads) as pool:
            done = pool.map(partial(evaluate, verifier, detail=row.detail), parts)
            judged = [picture for part in done for picture in part]
        replies = [picture.reply for picture in judged]
        boxes = read_boxes(replies).counts
        maps = {
            f"{name}_map": [p.picture.maps[name].astype(np.float32) / 255 for p in judged]
            for name in ("artifact", "misalignment")
        }
        terms = total_rewards(None, replies, names=GROUNDING_REWARDS, **maps).terms
        found = [
            {"seed": self.seed, "row": path.stem, **picture.as_row(), "boxes": int(boxes[i])}
            | {name: float(values[i]) for name, values in terms.items()}
            for i, picture in enumerate(judged)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, found)

    def copy_figures(self, folder: Path) -> None:
        """Writes what the rows say of pictures, and their steps, each as one file."""
        tables = [
            parquet.read_table(self.folder / f"{name}.parquet").to_pylist()
            for name in self.rows
            if (self.folder / f"{name}.parquet").exists()
        ]
        if not tables:
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / f"pictures-{self.seed}.parquet", [r for rows in tables for r in rows])
        steps = [
            {"seed": self.seed, "row": name, **step}
            for name in self.rows
            for step in read_metrics(self.folder / name)
        ]
        write_rows(folder / f"steps-{self.seed}.parquet", steps)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows whose columns may differ, whole or not at all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    draft = path.with_suffix(".draft")
    parquet.write_table(table, draft, compression="zstd")
    draft.replace(path)


def changes_of(given: Sequence[Sequence[str]], entry: str) -> list[str]:
    """Returns the keys that the command line changes for an entry."""
    return [key for name, *keys in given if name == entry for key in keys]


def make_data(options: argparse.Namespace) -> None:
    """Makes pictures, or those that are missing, and reasons that lack a part."""
    out, data = Path(options.out), Path(options.out) / "data"
    sizes = f"{{train: {options.train}, {TEST_SPLIT}: {options.test}}}"
    share = f"sample_share={options.sample_share}"
    # A process of its own, whose workers are gone before anything is forked.
    entry = ["miniature-richhf", "miniature-richhf", f"output={data}", f"sizes={sizes}", share]
    command = [sys.executable, "-m", "tts_verifier.training", *entry, "part=64"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = {
        uid: text.removeprefix("<think>\n")
        for uid, text in read_reasons(data, "train", None).items()
    }
    kept = {
        "no-look": lambda text: text.partition(REGIONS_START)[0],
        "no-think": lambda text: "".join(text.partition(REGIONS_START)[1:]).strip(),
    }
    for name, cut in kept.items():
        lines = [
            json.dumps({"filename": f"{uid}.png", "reasons": cut(text)}) + "\n"
            for uid, text in whole.items()
        ]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def chosen_rows(options: argparse.Namespace) -> dict[str, Row]:
    """Returns the rows to make, in the order of ROWS, and those that were added."""
    names = DEFAULT_ROWS if options.rows == ["default"] else options.rows
    rows = {START: Row("", "")} | ROWS
    if names != ["all"]:
        rows = {name: row for name, row in rows.items() if name in names}
    added = {name: replace(ROWS["grpo"], keys=tuple(keys)) for name, *keys in options.also}
    return rows | added


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/ablation")
    parser.add_argument("--figures", type=Path, help="[default: OUT/figures]")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: the table")
    parser.add_argument(
        "--rows", nargs="+", default=["default"], choices=["default", "all", START, *ROWS]
    )
    parser.add_argument("--init", default="shapes", help="the checkpoint that stage 1 starts from")
    parser.add_argument("--train", type=int, default=4000, help="pictures; RichHF-18K has 15,810")
    parser.add_argument("--test", type=int, default=1000, help="pictures, at most 4,000 or so")
    parser.add_argument(
        "--sample-share", type=float, default=0.0, help="of the generator's samples"
    )
    parser.add_argument("--batch", type=int, default=128, help="rows of a step of both stages")
    parser.add_argument("--grpo-steps", type=int, default=150)
    parser.add_argument(
        "--set", nargs="+", action="append", default=[], metavar=("ENTRY", "KEY=VALUE")
    )
    parser.add_argument(
        "--also", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE")
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no step begins")
    parser.add_argument("--workers", type=int, default=12, help="processes that make rows")
    parser.add_argument("--threads", type=int, default=16, help="that compare maps")
    return parser.parse_args()


def main() -> None:
    began, options = time.monotonic(), command_line()
    figures = options.figures or Path(options.out) / "figures"
    deciding = ("init", "train", "test", "sample_share", "batch", "grpo_steps", "set")
    if options.seeds:
        claim_folder(Path(options.out) / "ablation.json", {k: vars(options)[k] for k in deciding})
        make_data(options)
    rows = chosen_rows(options)
    for seed in options.seeds:
        ablation = Ablation(options, rows, seed)
        whole = ablation.run(lambda: 60 * options.minutes - (time.monotonic() - began))
        ablation.copy_figures(figures)
        if not whole:
            print("The time is up: the same command goes on from here.", flush=True)
            break
    print_figures(figures)


if __name__ == "__main__":
    main()
