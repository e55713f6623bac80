"""The folder of a training run: its settings, the state to go on from, and the metrics.

    OUTPUT/run.json             the settings; others in the same folder are an error
    OUTPUT/state/00000100/      weights, optimiser and random numbers after step 100 (accelerate),
                                and kept.json, the counts of what watches over the run
    OUTPUT/metrics/00000000.parquet   the steps from step 0 up to the next file's first step
    OUTPUT/checkpoint/          the trained verifier
    OUTPUT/examples.parquet     what it says of held-out pictures, see `training.examples`

A file of metrics says under which entry and on which device its steps were taken. A state is
written beside the older one and takes its place when it is whole. Metrics of steps after the state
are dropped when a run goes on, as these steps are taken again.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from accelerate import Accelerator

from tts_verifier.errors import RunError, TTSError
from tts_verifier.training.settings_file import check_folder, claim_folder
from tts_verifier.types.paths import read_json_inside

SETTINGS_FILE: Final = "run.json"
ABOUT_KEY: Final = b"tts-verifier run"
"""The key of the metadata of a file of metrics that says where its steps were taken, as JSON."""

_KEPT: Final = "kept.json"
_NUMBERED: Final = re.compile(r"\d{8,18}", re.ASCII)

MetricRow = dict[str, float]


class Counts(Protocol):
    """A counter whose value is saved with the run."""

    def state_dict(self) -> dict[str, int]:
        """Returns the counts."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Sets the counts."""


class RunFolder:
    """Keeps the files of a run. All processes make one and call the same methods.

    Args:
        folder: is made if it does not exist.
        settings: whatever decides the numbers, as JSON values.
        accelerator: knows the processes, and what there is to save.
        entry: of `tts-train`, for the report.
        kept: what counts something, by name.
        free: names of settings that decide no numbers, which an older run may have noted.

    Raises:
        RunError: the folder has something else, or a run with other settings, or cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        accelerator: Accelerator,
        *,
        entry: str = "",
        kept: Mapping[str, Counts] | None = None,
        free: Collection[str] = (),
    ) -> None:
        self._kept = dict(kept or {})
        self.folder, self._accelerator = folder, accelerator
        self._about = {"entry": entry, **_about(accelerator)}
        self._rows: list[MetricRow] = []
        if accelerator.is_main_process:
            claim_folder(folder / SETTINGS_FILE, settings, free)
            # What a kill left half written.
            shutil.rmtree(folder / "state" / "draft", ignore_errors=True)
        accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Loads the state, if there is one, and returns the number of steps taken.

        Raises:
            TTSError: the state cannot be read, or is one of other data.
        """
        states = self._states()
        step = int(states[-1].name) if states else 0
        if states:
            self._load(states[-1])
        if self._accelerator.is_main_process:
            for path in self.folder.glob("metrics/*.parquet"):
                if _NUMBERED.fullmatch(path.stem) and int(path.stem) >= step:
                    path.unlink()
        self._accelerator.wait_for_everyone()
        return step

    def record(self, row: MetricRow) -> None:
        """Keeps a step's metrics, with its number as `step`, until they are saved."""
        if self._accelerator.is_main_process:
            self._rows.append(row)

    def save_metrics(self) -> None:
        """Writes the metrics that were recorded since the last call.

        Raises:
            RunError: they cannot be written.
        """
        if self._accelerator.is_main_process:
            with written_to(self.folder, "metrics"):
                write_metrics(self.folder, self._rows, self._about)
        self._rows = []

    def save(self, step: int) -> None:
        """Writes metrics and the state after so many steps, if that is not there yet.

        Raises:
            RunError: they cannot be written; the state before is still there.
        """
        with written_to(self.folder, f"the state after {step} steps"):
            self._save(step)

    def _save(self, step: int) -> None:
        self.save_metrics()
        draft, final = self.folder / "state" / "draft", self.folder / "state" / f"{step:08d}"
        if final.is_dir():
            return
        self._accelerator.wait_for_everyone()
        # accelerate warns that a tied output matrix is stored once, as it should be.
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
        self._accelerator.save_state(str(draft))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            counts = {name: part.state_dict() for name, part in self._kept.items()}
            (draft / _KEPT).write_text(json.dumps(counts), encoding="utf-8")
            older = self._states()
            draft.replace(final)
            for path in older:
                shutil.rmtree(path)
        self._accelerator.wait_for_everyone()

    def _states(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("state/*") if _NUMBERED.fullmatch(p.name))

    def _load(self, state: Path) -> None:
        try:
            # Not accelerate's objects of one's own: it reads these from pickles, which run code.
            counts = read_json_inside(state, _KEPT)
            for name, part in self._kept.items():
                part.load_state_dict({str(key): int(n) for key, n in counts[name].items()})
            self._accelerator.load_state(str(state))
        except TTSError:
            raise
        # Whatever damage makes torch, safetensors and accelerate raise.
        except Exception as error:
            raise RunError(
                f"{state} must be the state of this run, and cannot be read: {error!r:.300}. "
                "Remove it; the run then starts from its beginning."
            ) from error


def check_run_folder(folder: str, settings: Mapping[str, Any], free: Collection[str]) -> None:
    """Checks the folder of a run and its settings before anything is loaded.

    Args:
        folder: of the run; it may be new.
        settings: as for `RunFolder`, those that are free too.
        free: likewise.

    Raises:
        RunError: as for `RunFolder`.
    """
    check_folder(Path(folder) / SETTINGS_FILE, settings, free)


@contextmanager
def written_to(folder: Path, what: str) -> Iterator[None]:
    """Turns what full disks make torch, safetensors, pyarrow and the system raise into one error.

    Args:
        folder: that is written to.
        what: is written.

    Raises:
        RunError: it could not be written.
    """
    try:
        yield
    except TTSError:
        raise
    except Exception as error:
        raise RunError(
            f"{folder} must take {what}, and could not: {error!r:.300}. Is the disk full? The same "
            "command then goes on from the state that was kept last."
        ) from error


def _about(accelerator: Accelerator) -> dict[str, Any]:
    """Returns where a process takes its steps, as JSON values."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type}, {name}",
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "torch": str(torch.__version__),
    }


def plain_values(settings: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Returns settings as every tracker takes them: what is no number becomes text."""
    return {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in settings.items()}


def write_metrics(
    folder: Path, rows: Sequence[MetricRow], about: Mapping[str, Any] | None = None
) -> None:
    """Writes the rows of some steps, whole or not at all; rows may differ in their columns.

    Args:
        folder: of the run.
        rows: in the order of their `step`.
        about: where the steps were taken, as JSON values.
    """
    import pyarrow
    from pyarrow import parquet

    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    table = table.replace_schema_metadata({ABOUT_KEY: json.dumps(about or {}).encode()})
    (folder / "metrics").mkdir(exist_ok=True)
    draft = folder / "metrics" / "rows.draft"
    parquet.write_table(table, draft)
    draft.replace(folder / "metrics" / f"{int(rows[0]['step']):08d}.parquet")


def read_metrics(folder: Path) -> list[MetricRow]:
    """Reads the metrics of a run, in the order of its steps.

    Raises:
        RunError: a file is damaged.
    """
    from pyarrow import ArrowException, parquet

    rows: list[MetricRow] = []
    for path in sorted((folder / "metrics").glob("*.parquet")):
        try:
            rows += parquet.read_table(path).to_pylist()
        except (ArrowException, OSError) as error:
            raise RunError(
                f"{path} must have metrics of this run, and cannot be read: {error!s:.200}. "
                "Remove it; the run goes on without these rows."
            ) from error
    return rows
