"""Runs the published ablation of ImageDoctor's training on the miniature RichHF, and prints it.

    python examples/benchmarks/richhf_ablation.py --out runs/ablation --seeds 0 1 2
    python examples/benchmarks/richhf_ablation.py --seeds 0 --rows all --minutes 9
    python examples/benchmarks/richhf_ablation.py --figures FOLDER --seeds     # the tables alone

For each seed: answers alone (stage 1), reasons and heatmaps (stage 2), and from stage 2 three runs:
GRPO, GRPO without the rewards of boxes, and more of stage 2 for the seconds that GRPO took. Every
row is measured on the same held-out pictures. `--rows all` adds the start, stage 1 with heatmaps,
and stage 2 without look (no regions) and without think (no objects, no checks). The published row
"without task token" is not here: this network reads maps from the states of both tokens.

What is finished stays in --out (20 MB a row), and the same command goes on with the rest; --minutes
ends the training in between. --figures gets two small files a seed: what each row says of each
picture, and every step. Tables are made of these alone, so seeds may come from several machines.
`--set` changes keys of an entry, `--also` adds a row that starts from stage 2:

    … --set grpo beta=0.1 --also grpo-slow grpo learning_rate=3e-5 --also short cold-start-2

ABLATION.md explains the choices.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablation_figures import judge, print_figures, write_rows
from pyarrow import parquet

from tts_verifier.errors import RunError, TTSError
from tts_verifier.training.cold_start.sources import read_reasons
from tts_verifier.training.common.run_folder import read_metrics
from tts_verifier.training.entries import read_config, run_entry
from tts_verifier.training.grpo.rewards import GROUNDING_REWARDS, REWARDS
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
EPOCHS = {"cold-start-1": 5, "cold-start-2": 3}
"""The paper's."""
ALWAYS = {"in_memory": "true", "recompute": "false", "block": "null", "dtype": "float16"}
ALWAYS |= {"examples": "0", "trackers": "[]"}
KEYS = {
    "cold-start-1": {"learning_rate": "2e-4"},
    "cold-start-2": {"learning_rate": "2e-4", "map_rows": "64", "reasons": "null"},
    "grpo": {"learning_rate": "1e-4", "steps": "150"},
}
"""Entry -> what is changed in its packaged config."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    parent: str
    """The row whose checkpoint it starts from."""
    entry: str
    """That trains it."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """What its config changes besides; `{out}` is the folder of the ablation."""
    detail: Detail = "diagnose"
    """How it is judged."""
    heatmaps: bool = True
    """Whether it has learned any."""


ROWS = {
    START: Row("", ""),
    "stage-1": Row(START, "cold-start-1", {}, "score", heatmaps=False),
    "stage-2": Row("stage-1", "cold-start-2"),
    "grpo": Row("stage-2", "grpo"),
    "more-stage-2": Row("stage-2", "cold-start-2"),
    "grpo-no-grounding": Row("stage-2", "grpo", {"rewards": NO_GROUNDING}),
    "stage-1-maps": Row(START, "cold-start-2", {"answer_only_share": "1.0"}, "score"),
    "no-look": Row("stage-1", "cold-start-2", {"reasons": "{out}/no-look.jsonl"}),
    "no-think": Row("stage-1", "cold-start-2", {"reasons": "{out}/no-think.jsonl"}),
}
DEFAULT_ROWS = ("stage-1", "stage-2", "grpo", "more-stage-2", "grpo-no-grounding")


class Ablation:
    """Trains and measures the rows of one seed.

    Args:
        options: of the command line.
        rows: of the table, by name, parents first.
        seed: of every run.
    """

    def __init__(self, options: argparse.Namespace, rows: Mapping[str, Row], seed: int) -> None:
        self.options, self.rows, self.seed = options, rows, seed
        self.out, self.data = Path(options.out), Path(options.out) / "data"
        self.folder = self.out / f"seed-{seed}"

    def run(self, seconds_left: Callable[[], float]) -> bool:
        """Makes what is missing and returns whether there was time for all of it."""
        pictures = read_split(self.data, TEST_SPLIT).pictures
        for name, row in self.rows.items():
            measured = self.folder / f"{name}.parquet"
            if measured.exists():
                continue
            began = time.monotonic()
            try:
                if name != START and not self.train(name, row, seconds_left() / 60):
                    return False
                self.measure(row, self.checkpoint_of(name), pictures, measured)
            except TTSError as error:
                print(f"{name} failed: {error}", flush=True)
                continue
            print(f"seed {self.seed}, {name}: {time.monotonic() - began:.0f} s", flush=True)
        return True

    def checkpoint_of(self, name: str) -> str:
        """Returns the folder of a row's checkpoint."""
        return str(self.options.init if name == START else self.folder / name / "checkpoint")

    def train(self, name: str, row: Row, minutes: float) -> bool:
        """Trains a row, or what is left of it, and returns whether it is trained to its end."""
        folder = self.folder / name
        keys = self.keys_of(name, row) | {"steps": str(self.steps_of(name, row))}
        steps = int(keys["steps"])
        # The state of a run goes when it is finished, and says so.
        if steps_taken(folder) == steps and not (folder / "state").exists():
            return True
        if minutes <= 0:
            return False
        overrides = [f"{key}={value}" for key, value in keys.items()]
        run_entry(row.entry, row.entry, [*overrides, f"minutes={minutes:.3f}"])
        gc.collect()
        if steps_taken(folder) < steps:
            return False
        shutil.rmtree(folder / "state", ignore_errors=True)
        return True

    def keys_of(self, name: str, row: Row) -> dict[str, str]:
        """Returns what a row changes in the packaged config of its entry, but for its steps."""
        keys = ALWAYS | {"init": self.checkpoint_of(row.parent), "data": str(self.data)}
        keys |= {"output": str(self.folder / name), "seed": str(self.seed)}
        if row.entry in EPOCHS:
            keys |= {"batch": str(self.options.batch), "workers": str(self.options.workers)}
        keys |= KEYS[row.entry] | changes_of(self.options.set, row.entry) | dict(row.keys)
        return (
            keys | {"reasons": keys["reasons"].format(out=self.out)} if "reasons" in keys else keys
        )

    def steps_of(self, name: str, row: Row) -> int:
        """Returns the steps of a row: those that are given, some epochs, or GRPO's time."""
        given = self.keys_of(name, row).get("steps")
        if given is not None:
            return int(given)
        if name == "more-stage-2":
            spent = sum(step["seconds"] for step in read_metrics(self.folder / "grpo"))
            usual = [step["seconds"] for step in read_metrics(self.folder / "stage-2")]
            if not (spent and usual):
                raise RunError("more-stage-2 takes as long as grpo: it needs stage-2 and grpo.")
            return max(1, round(spent / statistics.mean(usual[FEW_STEPS:] or usual)))
        return max(1, round(EPOCHS[row.entry] * self.options.train / self.options.batch))

    def measure(self, row: Row, checkpoint: str, pictures: Sequence[Any], path: Path) -> None:
        """Judges the test pictures, and writes a row of a table for each."""
        verifier = ImageDoctor.from_pretrained(checkpoint, heatmaps=row.heatmaps)
        judged = judge(verifier, pictures, row.detail, self.options.threads)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [{"seed": self.seed, "row": path.stem, **line} for line in judged])

    def copy_figures(self, folder: Path) -> None:
        """Writes what all rows say of pictures, and their steps, each as one file."""
        files = sorted(self.folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime)
        if not files:
            return
        folder.mkdir(parents=True, exist_ok=True)
        lines = [line for path in files for line in parquet.read_table(path).to_pylist()]
        write_rows(folder / f"pictures-{self.seed}.parquet", lines)
        of_row = {path.stem: read_metrics(self.folder / path.stem) for path in files}
        steps = [{"seed": self.seed, "row": name, **s} for name, run in of_row.items() for s in run]
        write_rows(folder / f"steps-{self.seed}.parquet", steps)


def steps_taken(folder: Path) -> int:
    """Returns how many steps a run has taken."""
    rows = read_metrics(folder)
    return int(rows[-1]["step"]) + 1 if rows else 0


def as_keys(texts: Iterable[str]) -> dict[str, str]:
    """Returns KEY=VALUE texts as a dictionary."""
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def changes_of(given: Sequence[Sequence[str]], entry: str) -> dict[str, str]:
    """Returns the keys that the command line changes for an entry."""
    return {k: v for name, *keys in given if name == entry for k, v in as_keys(keys).items()}


def make_data(options: argparse.Namespace) -> None:
    """Makes pictures, or those that are missing, and reasons that lack a part."""
    out, data = Path(options.out), Path(options.out) / "data"
    if (out / "no-think.jsonl").exists():  # it is written last
        return
    sizes = f"{{train: {options.train}, {TEST_SPLIT}: {options.test}}}"
    share = f"sample_share={options.sample_share}"
    # A process of its own, whose workers are gone before anything is forked.
    entry = ["miniature-richhf", "miniature-richhf", f"output={data}", f"sizes={sizes}", share]
    command = [sys.executable, "-m", "tts_verifier.training", *entry, "part=64"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = read_reasons(data, "train", None)
    cuts = {  # name -> which of the parts before, at and after the start of the regions stay
        "no-look": slice(0, 1),
        "no-think": slice(1, 3),
    }
    for name, cut in cuts.items():
        lines = []
        for uid, text in whole.items():
            kept = "".join(text.removeprefix("<think>\n").partition(REGIONS_START)[cut])
            lines.append(json.dumps({"filename": f"{uid}.png", "reasons": kept.strip()}) + "\n")
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def chosen_rows(options: argparse.Namespace) -> dict[str, Row]:
    """Returns the rows to make, in the order of ROWS, and those that were added."""
    names = {"default": DEFAULT_ROWS, "all": tuple(ROWS)}.get(options.rows[0], options.rows)
    rows = {name: row for name, row in ROWS.items() if name in names}
    for name, entry, *keys in options.also:
        rows[name] = Row("stage-2", entry, as_keys(keys))
    # A misspelt key is found before anything is paid for.
    for name, row in rows.items():
        if name != START:
            keys = Ablation(options, rows, 0).keys_of(name, row)
            read_config(row.entry, row.entry, [f"{k}={v}" for k, v in keys.items()])
    return rows


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
    parser.add_argument(
        "--set", nargs="+", action="append", default=[], metavar=("ENTRY", "KEY=VALUE")
    )
    parser.add_argument(
        "--also", nargs="+", action="append", default=[], metavar=("NAME ENTRY", "KEY=VALUE")
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no step begins")
    parser.add_argument("--workers", type=int, default=12, help="processes that make rows")
    parser.add_argument("--threads", type=int, default=16, help="that compare maps")
    return parser.parse_args()


def main() -> None:
    began, options = time.monotonic(), command_line()
    figures = options.figures or Path(options.out) / "figures"
    rows = chosen_rows(options)
    deciding = ("init", "train", "test", "sample_share", "batch", "set")
    if options.seeds:
        claim_folder(Path(options.out) / "ablation.json", {k: vars(options)[k] for k in deciding})
        make_data(options)
        print(f"The data are there after {time.monotonic() - began:.0f} s.", flush=True)
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
