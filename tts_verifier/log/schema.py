"""A trial as one flat row of the log, and back: the schema, column by column.

A number that is NaN is written as null, so that it never sorts or averages; null is read
back as NaN where a verdict exists (`detail` is set), as absent where none does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from tts_verifier.errors import InputError
from tts_verifier.identity import mask_digest, proposal_to_json
from tts_verifier.types import Repaint, Setting, Trial, kind_of

_BOX: Final = pa.struct([(edge, pa.float64()) for edge in ("x1", "y1", "x2", "y2")])
_HEAD: Final = [
    ("prompt_id", pa.string()),
    ("prompt", pa.string()),
    ("category", pa.string()),
    ("trial_id", pa.string()),
    ("parent_id", pa.string()),
    ("round", pa.int64()),
    ("kind", pa.string()),
    ("seed", pa.int64()),
    ("proposal", pa.string()),
    ("mask_sha256", pa.string()),
    ("mask_path", pa.string()),
]
_COST: Final = [
    ("network_evaluations", pa.int64()),
    ("vae_passes", pa.int64()),
    ("verifier_calls", pa.int64()),
    ("draw_seconds", pa.float64()),
    ("judge_seconds", pa.float64()),
    ("progress", pa.float64()),
]
_TAIL: Final = [
    ("boxes", pa.list_(_BOX)),
    ("reply", pa.string()),
    ("detail", pa.string()),
    ("image_path", pa.string()),
    ("image_sha256", pa.string()),
    ("image_width", pa.int64()),
    ("image_height", pa.int64()),
]
_END: Final = [
    ("state_path", pa.string()),
    ("state_sha256", pa.string()),
    ("error", pa.string()),
    ("chosen", pa.bool_()),
]
_FIXED: Final = {name for name, _ in [*_HEAD, *_COST, *_TAIL, *_END]} | {"objective"}
_TYPES: Final[Mapping[type, pa.DataType]] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    type(None): pa.string(),
}


@dataclass
class Columns:
    """The columns that depend on the run: settings of the draw, names of scores and maps.

    Names of scores and maps are added as they are met; a schema made later has them all.
    """

    draw: Mapping[str, Setting]
    scores: dict[str, None] = field(default_factory=dict)
    judge: dict[str, None] = field(default_factory=dict)
    maps: dict[str, None] = field(default_factory=dict)

    def know(self, names: Mapping[str, Iterable[str]]) -> None:
        """Adds names by role, as a log has them."""
        self.scores.update(dict.fromkeys(names["score"]))
        self.judge.update(dict.fromkeys(names["judge"]))
        self.maps.update(dict.fromkeys(names["heatmap"]))

    def meet(self, trials: Iterable[Trial]) -> None:
        """Adds the names that these trials have.

        Raises:
            InputError: a score has the name of a column of the log.
        """
        for trial in trials:
            self.scores.update(dict.fromkeys(trial.scores))
            self.judge.update(dict.fromkeys(trial.judge))
            self.maps.update(dict.fromkeys(trial.heatmaps))
        own = _FIXED | {f"judge_{name}" for name in self.judge}
        taken = sorted(self.scores.keys() & own | {f"judge_{n}" for n in self.judge} & _FIXED)
        if taken:
            raise InputError(
                f"A score cannot be called {', '.join(taken)}: that is a column of the log. "
                "Rename the verifier's score."
            )

    def schema(self) -> pa.Schema:
        """Returns the schema; the role of a run's own columns is in their metadata."""

        def own(role: str, columns: Iterable[tuple[str, str, pa.DataType]]) -> list[pa.Field]:
            return [
                pa.field(column, kind, metadata={"role": role, "name": name})
                for name, column, kind in columns
            ]

        def numbers(names: Iterable[str], prefix: str) -> list[tuple[str, str, pa.DataType]]:
            return [(name, prefix + name, pa.float64()) for name in names]

        draw = [(n, f"draw_{n}", _TYPES[type(v)]) for n, v in self.draw.items()]
        fields = [
            *(pa.field(*column) for column in _HEAD),
            *own("draw", draw),
            *(pa.field(*column) for column in _COST),
            *own("score", numbers(self.scores, "")),
            pa.field("objective", pa.float64()),
            *own("judge", numbers(self.judge, "judge_")),
            *(pa.field(*column) for column in _TAIL),
        ]
        for name in self.maps:
            fields += own("heatmap", [(name, f"heatmap_{name}_path", pa.string())])
            fields.append(pa.field(f"heatmap_{name}_sha256", pa.string()))
            fields.append(pa.field(f"heatmap_{name}_box", _BOX))
        return pa.schema([*fields, *(pa.field(*column) for column in _END)])


def names_of(schema: pa.Schema, role: str) -> dict[str, None]:
    """Returns the run's own names of one role: "draw", "score", "judge" or "heatmap"."""
    return {
        f.metadata[b"name"].decode(): None
        for f in schema
        if f.metadata and f.metadata.get(b"role") == role.encode()
    }


def struct_of(box: Iterable[float]) -> dict[str, float]:
    """Returns a box as the log writes it."""
    return dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True))


def to_row(trial: Trial, draw: Mapping[str, Setting]) -> dict[str, Any]:
    """Returns the row without what concerns files, but with the mask's digest."""
    proposal, cost = trial.proposal, trial.cost
    row = {
        "prompt_id": trial.prompt.id,
        "prompt": trial.prompt.text,
        "category": trial.prompt.category or None,
        "trial_id": trial.id,
        "parent_id": trial.parent_id,
        "round": trial.round,
        "kind": kind_of(proposal),
        "seed": getattr(proposal, "seed", None),
        "proposal": proposal_to_json(proposal),
        "network_evaluations": cost.network_evaluations,
        "vae_passes": cost.vae_passes,
        "verifier_calls": cost.verifier_calls,
        "draw_seconds": cost.draw_seconds,
        "judge_seconds": cost.judge_seconds,
        "progress": trial.progress,
        "objective": number(trial.objective),
        "boxes": [struct_of(box) for box in trial.boxes],
        "reply": trial.text,
        "detail": trial.detail if trial.scores else None,
        "error": trial.error or None,
        **{f"draw_{name}": value for name, value in draw.items()},
        **{name: number(value) for name, value in trial.scores.items()},
        **{f"judge_{name}": number(value) for name, value in trial.judge.items()},
    }
    if isinstance(proposal, Repaint):
        row["mask_sha256"] = mask_digest(proposal.mask)
    return row


def number(value: float) -> float | None:
    """Returns the value, None when it is not finite."""
    return float(value) if math.isfinite(value) else None
