"""Turns a trial into a flat row of the log and back, and defines the schema of the columns.

`SCHEMA.md` beside this file documents every column. NaN is written as null: sorting and averaging
then skip it. Null is read back as NaN where there is a verdict (`detail` is set).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tts_verifier.errors import InputError, RunError
from tts_verifier.identity import mask_digest, proposal_from_json, proposal_to_json
from tts_verifier.log.storage.codecs import IMAGE, STATE, HeatmapCodec, heatmap_box
from tts_verifier.log.storage.columns import (
    BOX_TYPE,
    COST_COLUMNS,
    FIXED,
    LAST_COLUMNS,
    NAMED_ROLES,
    PROPOSAL_COLUMNS,
    VERDICT_COLUMNS,
    names_of,
)
from tts_verifier.log.storage.files import mask_path, read_mask
from tts_verifier.types import (
    Box,
    Cost,
    Decoder,
    Heatmaps,
    InFile,
    Job,
    Prompt,
    Repaint,
    Setting,
    Stored,
    Trial,
    Verdict,
    kind_of,
)

# By exact type, because bool is a subclass of int.
_SETTING_TYPES: Final[Mapping[type, pa.DataType]] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    type(None): pa.string(),
}
_COST_FIELDS: Final = tuple(Cost.__dataclass_fields__)
NO_TRIAL: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""The errors that reading a damaged or forged row may raise."""
_NEEDED: Final = ("prompt", "round", "kind", "proposal", "progress", *_COST_FIELDS)
"""Columns that are never null."""
_MOST_PIXELS: Final = 2**28
"""Of an image; Pillow refuses to open larger ones."""
# One C call for all fields of a cost: a continued run reads up to a million rows.
_costs_of_row: Final = itemgetter(*_COST_FIELDS)
_costs_of_cost: Final = attrgetter(*_COST_FIELDS)


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The names that differ from log to log."""

    score: Collection[str]
    """Names of the verifier's scores."""
    judge: Collection[str]
    """Names of the held-out judge's scores."""
    heatmap: Collection[str]
    """Names of heatmaps."""

    @classmethod
    def of(cls, schema: pa.Schema) -> ColumnNames:
        """Reads the names from a schema's metadata."""
        return cls(*(names_of(schema, role) for role in NAMED_ROLES))


@dataclass
class Columns:
    """Collects the columns of a log as trials come. Not for sharing between threads."""

    generator: Mapping[str, Setting]
    """The generator's settings."""
    scores: dict[str, None] = field(default_factory=dict)
    """Names of the verifier's scores."""
    judge: dict[str, None] = field(default_factory=dict)
    """Names of the held-out judge's scores."""
    heatmaps: dict[str, None] = field(default_factory=dict)
    """Names of heatmaps."""

    def add_names(self, names: ColumnNames) -> None:
        """Adds the names of an existing log."""
        self.scores.update(dict.fromkeys(names.score))
        self.judge.update(dict.fromkeys(names.judge))
        self.heatmaps.update(dict.fromkeys(names.heatmap))

    def add_trials(self, trials: Iterable[Trial]) -> None:
        """Adds the names that trials bring.

        Raises:
            InputError: a score has the name of a column of the log.
        """
        for trial in trials:
            self.scores.update(dict.fromkeys(trial.scores))
            self.judge.update(dict.fromkeys(trial.judge))
            if trial.verdict is not None:
                self.heatmaps.update(dict.fromkeys(trial.verdict.heatmaps))
        # A score's column has the score's name alone; the others have prefixes.
        columns = Counter([*FIXED, *self.scores, *(f"generator_{name}" for name in self.generator)])
        columns.update(f"judge_{name}" for name in self.judge)
        for name in self.heatmaps:
            columns.update(f"heatmap_{name}_{end}" for end in ("path", "sha256", "box"))
        if taken := sorted(name for name, count in columns.items() if count > 1):
            raise InputError(
                f"A score cannot be called {', '.join(taken)}: that is a column of the log. "
                "Rename the verifier's score."
            )

    def schema(self) -> pa.Schema:
        """Returns the schema of all columns so far.

        The columns that depend on the run carry their role and name as metadata.
        """

        def named(role: str, name: str, column: str, kind: pa.DataType) -> pa.Field:
            return pa.field(column, kind, metadata={"role": role, "name": name})

        settings = [
            named("generator", name, f"generator_{name}", _SETTING_TYPES[type(value)])
            for name, value in self.generator.items()
        ]
        fields = [
            *(pa.field(*column) for column in PROPOSAL_COLUMNS),
            *settings,
            *(pa.field(*column) for column in COST_COLUMNS),
            *(named("score", name, name, pa.float64()) for name in self.scores),
            pa.field("objective", pa.float64()),
            *(named("judge", name, f"judge_{name}", pa.float64()) for name in self.judge),
            *(pa.field(*column) for column in VERDICT_COLUMNS),
        ]
        for name in self.heatmaps:
            fields.append(named("heatmap", name, f"heatmap_{name}_path", pa.string()))
            fields.append(pa.field(f"heatmap_{name}_sha256", pa.string()))
            fields.append(pa.field(f"heatmap_{name}_box", BOX_TYPE))
        return pa.schema([*fields, *(pa.field(*column) for column in LAST_COLUMNS)])


# -- from a trial to a row -----------------------------------------------------------------


def to_row(trial: Trial, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Returns the row of a trial, by column.

    Args:
        trial: a verified trial whose image, heatmaps and state are in files.
        settings: the generator's settings.
    """
    proposal, verdict = trial.proposal, trial.verdict
    width, height = trial.size or (None, None)
    row = {
        "prompt_id": trial.prompt.id,
        "prompt": trial.prompt.text,
        "category": trial.prompt.category or None,
        "trial_id": trial.id,
        "parent_id": trial.parent_id,
        "round": trial.round,
        "kind": kind_of(proposal),
        # A look has no seed.
        "seed": getattr(proposal, "seed", None),
        "proposal": proposal_to_json(proposal),
        **{f"generator_{name}": value for name, value in settings.items()},
        **dict(zip(_COST_FIELDS, _costs_of_cost(trial.cost), strict=True)),
        "progress": trial.progress,
        "objective": finite(trial.objective),
        **{f"judge_{name}": finite(value) for name, value in trial.judge.items()},
        "image_width": width,
        "image_height": height,
        "error": trial.error or None,
    }
    row |= _file_columns("image", trial.image) | _file_columns("state", trial.state)
    if verdict is not None:
        row |= _verdict_columns(verdict)
    if isinstance(proposal, Repaint):
        digest = mask_digest(proposal.mask)
        row |= {"mask_sha256": digest, "mask_path": mask_path(digest)}
    return row


def _verdict_columns(verdict: Verdict) -> dict[str, Any]:
    columns: dict[str, Any] = {name: finite(value) for name, value in verdict.scores.items()}
    columns |= {
        "boxes": [_box_struct(box) for box in verdict.boxes],
        "reply": verdict.text,
        "detail": verdict.detail,
    }
    for name, stored in verdict.heatmaps.stored.items():
        columns |= _file_columns(f"heatmap_{name}", stored)
        columns[f"heatmap_{name}_box"] = _box_struct(heatmap_box(stored))
    return columns


def _file_columns(column: str, stored: Stored[Any] | None) -> dict[str, str]:
    if not isinstance(stored, InFile):
        return {}
    return {f"{column}_path": stored.path, f"{column}_sha256": stored.sha256}


def _box_struct(box: Box) -> dict[str, float]:
    return dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True))


def finite(value: float) -> float | None:
    """Returns the value as a float, or None if it is not finite."""
    return float(value) if math.isfinite(value) else None


# -- from a row to a trial -----------------------------------------------------------------


def to_trial(
    row: Mapping[str, Any], folder: Path, names: ColumnNames, *, job: Job | None = None
) -> Trial:
    """Returns a row as a trial; its image, heatmaps and state stay in their files.

    Args:
        row: values by column.
        folder: the run folder.
        names: the names of the log's scores and heatmaps.
        job: the trial's job; None = read prompt and proposal from the row.

    Raises:
        RunError: the row does not describe a trial, or its mask is gone.
    """
    try:
        check_values(row)
        return _trial_of_row(row, folder, names, job or _job_of_row(row, folder))
    except NO_TRIAL as error:
        raise RunError(f"{folder} holds a row that is not a trial: {error!r:.300}.") from error


def scores_of_row(row: Mapping[str, Any], names: ColumnNames) -> dict[str, float]:
    """Returns the verifier's scores of a row, empty where it has no verdict."""
    return {} if row["detail"] is None else {name: _nan(row[name]) for name in names.score}


def judge_of_row(row: Mapping[str, Any], names: ColumnNames) -> dict[str, float]:
    """Returns the held-out judge's scores of a row, empty where it gave none."""
    values = {name: row[f"judge_{name}"] for name in names.judge}
    # Null stands for NaN too: a row whose scores are all NaN reads as one that was not judged.
    if all(value is None for value in values.values()):
        return {}
    return {name: _nan(value) for name, value in values.items()}


def file_of_row(
    row: Mapping[str, Any], column: str, folder: Path, decoder: Decoder[Any]
) -> InFile[Any] | None:
    """Returns the value in the file that a row names under `column`, None if it names none."""
    path = row[f"{column}_path"]
    return InFile(folder, path, row[f"{column}_sha256"], decoder) if path else None


def objective_of_row(row: Mapping[str, Any]) -> float:
    """Returns the objective, NaN where it is null."""
    return _nan(row["objective"])


def check_values(row: Mapping[str, Any]) -> None:
    """Raises ValueError for values that no trial has. The types were checked with the table.

    Columns that were not read are not checked: a continued run has the prompt and the proposal from
    its jobs, and outlines have no images.
    """
    if nulls := [name for name in _NEEDED if row.get(name, "") is None]:
        raise ValueError(f"{', '.join(nulls)} must not be null")
    if not all(map(math.isfinite, (row["progress"], *_costs_of_row(row)))):
        raise ValueError("progress and costs must be finite")
    size = (row.get("image_width"), row.get("image_height"))
    if size != (None, None):
        width, height = (side or 0 for side in size)
        if min(width, height) < 1 or width * height > _MOST_PIXELS:
            raise ValueError(f"its image has {width} x {height} pixels")


def _box_of_grid(box: Mapping[str, float] | None) -> Box:
    """Returns the part of a grid that an image covers; raises ValueError if there is none."""
    edges = [edge for edge in (box or {}).values() if _is_finite(edge)]
    if len(edges) != 4 or min(edges) < 0 or max(edges) > 1:
        raise ValueError(f"an image cannot cover {box} of the grid of a heatmap")
    return edges[0], edges[1], edges[2], edges[3]


def _job_of_row(row: Mapping[str, Any], folder: Path) -> Job:
    prompt = Prompt(row["prompt_id"], row["prompt"], row.get("category") or "")
    return Job(prompt, proposal_from_json(row["proposal"], partial(read_mask, folder)))


def _trial_of_row(row: Mapping[str, Any], folder: Path, names: ColumnNames, job: Job) -> Trial:
    size = (row["image_width"], row["image_height"])
    return Trial(
        id=row["trial_id"],
        prompt=job.prompt,
        round=row["round"],
        proposal=job.proposal,
        progress=row["progress"],
        verdict=_verdict_of_row(row, folder, names, size),
        objective=_nan(row["objective"]),
        cost=Cost(*_costs_of_row(row)),
        image=file_of_row(row, "image", folder, IMAGE),
        size=None if None in size else size,
        state=file_of_row(row, "state", folder, STATE),
        judge=judge_of_row(row, names),
        error=row["error"] or "",
    )


def _verdict_of_row(
    row: Mapping[str, Any], folder: Path, names: ColumnNames, size: tuple[int, int]
) -> Verdict | None:
    if row["detail"] is None:
        return None
    boxes = [(b["x1"], b["y1"], b["x2"], b["y2"]) for b in row["boxes"] or ()]
    heatmaps = {}
    for name in names.heatmap:
        if path := row[f"heatmap_{name}_path"]:
            box = _box_of_grid(row[f"heatmap_{name}_box"])
            codec = HeatmapCodec(size, box)
            heatmaps[name] = InFile(folder, path, row[f"heatmap_{name}_sha256"], codec)
    return Verdict(
        scores=scores_of_row(row, names),
        heatmaps=Heatmaps(heatmaps),
        boxes=tuple(box for box in boxes if all(map(_is_finite, box))),
        text=row["reply"] or "",
        detail=row["detail"],
        # The row has one cost for image and verdict; these two fields belong to the verdict.
        cost=Cost(verifier_calls=row["verifier_calls"], verify_seconds=row["verify_seconds"]),
    )


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _nan(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
