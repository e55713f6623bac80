"""The run folder: what was drawn and judged, written so that a kill loses nothing judged.

    header.json        what the run is and under what it was made
    parts/*.parquet    while it runs: one after every judged batch, `chosen` null
    trials.parquet     when it has finished: all rows, `chosen` filled
    images/, heatmaps/, masks/    PNG files, named in the rows by relative paths
    states/            latents of unfinished candidates, until nothing can refer to them

Every file appears by an atomic rename, a row only after the files that it names. The parts
go after `trials.parquet` has come; a kill between the two is recognised by the trial ids.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tts_verifier.errors import RunError
from tts_verifier.identity import mask_digest, proposal_from_json
from tts_verifier.provenance import environment
from tts_verifier.rows import Columns, names_of, struct_of, to_row
from tts_verifier.types import Cost, Heatmap, Mask, Prompt, Repaint, Setting, State, Stored, Trial

SCHEMA_VERSION: Final = 1
_HEADER, _TABLE, _PARTS = "header.json", "trials.parquet", "parts"


class RunLog:
    """Writes one run folder; made by `open_log`.

    `trials`: what the folder already holds, by id, in the order in which it was judged.
    """

    def __init__(self, folder: Path, draw: Mapping[str, Setting]) -> None:
        self.folder = folder
        self.trials = {trial.id: trial for trial in read_trials(folder)}
        self._columns = Columns(draw)
        self._columns.meet(self.trials.values())
        self._next = 1 + max((int(p.stem) for p in _parts(folder)), default=-1)

    def append(self, trials: Sequence[Trial]) -> list[Trial]:
        """Writes the files of judged trials, then their rows as one part.

        Returns:
            The trials, their images, maps and states read from the files when looked at.
        """
        self._columns.meet(trials)
        rows, stored = [], []
        for trial in trials:
            row, trial = self._save_files(trial)
            rows.append(row)
            stored.append(trial)
        table = pa.Table.from_pylist(rows, schema=self._columns.schema())
        _write_table(self.folder / _PARTS / f"{self._next:08d}.parquet", table)
        self._next += 1
        self.trials.update((trial.id, trial) for trial in stored)
        return stored

    def forget_states(self, trials: Iterable[Trial]) -> None:
        """Deletes the states of trials that no proposal can refer to any more."""
        for trial in trials:
            if trial.state is not None and trial.state.path:
                (self.folder / trial.state.path).unlink(missing_ok=True)

    def finish(self, chosen: Collection[str]) -> None:
        """Merges the parts into one table that says which trials were chosen."""
        table = _read_table(self.folder)
        if table is None:
            table = self._columns.schema().empty_table()
        self._columns.meet(self.trials.values())
        table = _conform(table, self._columns.schema())
        gone = pa.nulls(len(table), pa.string())
        marks = pa.array([i in chosen for i in table["trial_id"].to_pylist()], pa.bool_())
        for name, values in (("state_path", gone), ("state_sha256", gone), ("chosen", marks)):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(name), values)
        _write_table(self.folder / _TABLE, table)
        self.forget_states(self.trials.values())
        for part in _parts(self.folder):
            part.unlink()

    def _save_files(self, trial: Trial) -> tuple[dict[str, Any], Trial]:
        row = to_row(trial, self._columns.draw)
        image, maps, state = trial.image, dict(trial.heatmaps), trial.state
        if isinstance(trial.proposal, Repaint):
            path = f"masks/{row['mask_sha256']}.png"
            self._save(path, _png(Image.fromarray(trial.proposal.mask.array())))
            row["mask_path"] = path
        if image is not None:
            picture = image.load()
            if not image.path:
                image = self._keep(f"images/{trial.id}.png", _png(picture), _image)
            row |= {"image_path": image.path, "image_sha256": image.sha256}
            row |= {"image_width": picture.width, "image_height": picture.height}
        for name, stored in trial.heatmaps.items():
            heatmap = stored.load()
            path = f"heatmaps/{trial.id}.{name}.png"
            decode = partial(_heatmap, size=heatmap.size, box=heatmap.box)
            maps[name] = kept = self._keep(path, _png(_grey(heatmap.grid)), decode)
            column = f"heatmap_{name}"
            row |= {f"{column}_path": kept.path, f"{column}_sha256": kept.sha256}
            row[f"{column}_box"] = struct_of(heatmap.box)
        if state is not None:
            state = self._keep(f"states/{trial.id}.npz", _npz(state.load()), _state)
            row |= {"state_path": state.path, "state_sha256": state.sha256}
        return row, replace(trial, image=image, heatmaps=maps, state=state)

    def _keep(self, path: str, content: bytes, decode: Callable[[bytes], Any]) -> Stored[Any]:
        self._save(path, content)
        return _stored(self.folder, path, hashlib.sha256(content).hexdigest(), decode)

    def _save(self, path: str, content: bytes) -> None:
        _write(self.folder / path, content)


def open_log(folder: Path, about: Mapping[str, Any], draw: Mapping[str, Setting]) -> RunLog:
    """Starts a run folder, or opens that of the same run to continue it.

    Args:
        folder: is made if it does not exist.
        about: JSON values that say what the run is; those of the folder must be equal.
        draw: the generator's settings, a column each.

    Raises:
        RunError: the folder belongs to another run, or cannot be read or written.
    """
    about = json.loads(json.dumps(about))
    if (folder / _HEADER).exists():
        _check_same(folder, read_header(folder)["about"], about)
    elif _parts(folder) or (folder / _TABLE).exists():
        raise RunError(
            f"{folder} holds the rows of a run but no {_HEADER} that says which. Choose another "
            "output folder."
        )
    else:
        header = {"schema_version": SCHEMA_VERSION, "about": about, **environment()}
        _write(folder / _HEADER, json.dumps(header, indent=2, ensure_ascii=False).encode())
    return RunLog(folder, draw)


def read_header(folder: Path) -> dict[str, Any]:
    """Returns the header of a run folder.

    Raises:
        RunError: there is none, it is not readable, or a newer version wrote it.
    """
    try:
        header: dict[str, Any] = json.loads((folder / _HEADER).read_bytes())
        version = header["schema_version"]
        header["about"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / _HEADER} must be a run's header: {error!r}.") from error
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{folder} has log version {version}, this is tts_verifier for version "
            f"{SCHEMA_VERSION}. Use the version that wrote it, or another folder."
        )
    return header


def read_trials(folder: Path) -> list[Trial]:
    """Returns the trials of a run folder in the order in which they were judged.

    Images, maps and states are read from their files when looked at, and checked against
    their SHA-256 then.

    Raises:
        RunError: a file is damaged.
    """
    table = _read_table(folder)
    if table is None:
        return []
    names = {role: names_of(table.schema, role) for role in ("score", "judge", "heatmap")}
    try:
        return [_to_trial(row, folder, names) for row in table.to_pylist()]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} holds a row that is not a trial: {error!r}.") from error


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of `read_trials` as they are written, by column.

    Raises:
        RunError: a file is damaged.
    """
    table = _read_table(folder)
    rows: list[dict[str, Any]] = [] if table is None else table.to_pylist()
    return rows


def _check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    old, new = dict(_flat(there)), dict(_flat(here))
    differ = [k for k in [*old, *(k for k in new if k not in old)] if old.get(k) != new.get(k)]
    if differ:
        lines = "".join(
            f"\n  {k}: {old.get(k, 'absent')!r} there, {new.get(k, 'absent')!r} here"
            for k in differ
        )
        raise RunError(
            f"{folder} belongs to another run, these differ:{lines}\n"
            "Choose another output folder, or give that run's recipe to continue it."
        )


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, item in value.items():
        yield from _flat(item, f"{key}.{name}" if key else name)


def _to_trial(row: Mapping[str, Any], folder: Path, names: Mapping[str, Iterable[str]]) -> Trial:
    def numbers(role: str, prefix: str, there: bool) -> dict[str, float]:
        return {n: _nan(row[prefix + n]) for n in names[role]} if there else {}

    def stored(column: str, decode: Callable[[bytes], Any]) -> Stored[Any] | None:
        path, digest = row[f"{column}_path"], row[f"{column}_sha256"]
        return _stored(folder, path, digest, decode) if path else None

    size, maps = (row["image_width"], row["image_height"]), {}
    for name in names["heatmap"]:
        box = tuple((row[f"heatmap_{name}_box"] or {}).values())
        if kept := stored(f"heatmap_{name}", partial(_heatmap, size=size, box=box)):
            maps[name] = kept
    judged = any(row[f"judge_{name}"] is not None for name in names["judge"])
    return Trial(
        id=row["trial_id"],
        prompt=Prompt(row["prompt_id"], row["prompt"]),
        round=row["round"],
        proposal=proposal_from_json(row["proposal"], partial(_mask, folder)),
        progress=row["progress"],
        scores=numbers("score", "", row["detail"] is not None),
        objective=_nan(row["objective"]),
        cost=Cost(**{name: row[name] for name in Cost.__dataclass_fields__}),
        boxes=tuple((b["x1"], b["y1"], b["x2"], b["y2"]) for b in row["boxes"]),
        text=row["reply"],
        detail=row["detail"] or "diagnose",
        image=stored("image", _image),
        heatmaps=maps,
        state=stored("state", _state),
        judge=numbers("judge", "judge_", judged),
        error=row["error"] or "",
    )


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


# -- files -------------------------------------------------------------------------------


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / _PARTS).glob("[0-9]*.parquet"))


def _read_table(folder: Path) -> pa.Table | None:
    """Returns all rows: the finished table, and what only the parts hold."""
    whole = folder / _TABLE
    tables, seen = [], set[str]()
    for path in [*([whole] if whole.exists() else []), *_parts(folder)]:
        try:
            table = pq.read_table(path, partitioning=None)
            fresh = [i not in seen for i in table["trial_id"].to_pylist()]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise RunError(
                f"{path} is damaged ({error}). Move it away to continue without its rows."
            ) from error
        tables.append(table.filter(pa.array(fresh, pa.bool_())))
        seen.update(table["trial_id"].to_pylist())
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def _write_table(path: Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Makes a file appear whole or not at all, also when the power goes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}. Make room or give permission, or "
            "choose another output folder."
        ) from error


def _stored(folder: Path, path: str, digest: str, decode: Callable[[bytes], Any]) -> Stored[Any]:
    def load() -> Any:
        try:
            content = (folder / path).read_bytes()
        except OSError as error:
            raise RunError(f"{folder / path} cannot be read: {error.strerror}.") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise RunError(f"{folder / path} was changed since the log was written.")
        return decode(content)

    return Stored(load, path, digest)


def _mask(folder: Path, digest: str) -> Mask:
    path = folder / "masks" / f"{digest}.png"
    try:
        mask = Mask.of(np.asarray(Image.open(path)).astype(np.bool_))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    if mask_digest(mask) != digest:
        raise RunError(f"{path} was changed since the log was written.")
    return mask


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Level 1 is several times faster than the default and costs about a tenth in size.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def _grey(grid: np.ndarray[Any, np.dtype[np.float32]]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(grid, 0, 1) * 255).astype(np.uint8))


def _heatmap(content: bytes, size: tuple[int, int], box: Any) -> Heatmap:
    grey = np.asarray(Image.open(io.BytesIO(content))).astype(np.float32)
    return Heatmap(grey / np.float32(255), size, box)


def _npz(state: State) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **dict(state))  # type: ignore[arg-type]
    return buffer.getvalue()


def _state(content: bytes) -> State:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
