"""The columns of the log with their types, and the check that a table has them."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

BOX_TYPE: Final = pa.struct([(edge, pa.float64()) for edge in ("x1", "y1", "x2", "y2")])
PROPOSAL_COLUMNS: Final = [
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
COST_COLUMNS: Final = [
    ("network_evaluations", pa.int64()),
    ("vae_passes", pa.int64()),
    ("verifier_calls", pa.int64()),
    ("generate_seconds", pa.float64()),
    ("verify_seconds", pa.float64()),
    ("progress", pa.float64()),
]
VERDICT_COLUMNS: Final = [
    ("boxes", pa.list_(BOX_TYPE)),
    ("reply", pa.string()),
    ("detail", pa.string()),
    ("image_path", pa.string()),
    ("image_sha256", pa.string()),
    ("image_width", pa.int64()),
    ("image_height", pa.int64()),
]
LAST_COLUMNS: Final = [
    ("state_path", pa.string()),
    ("state_sha256", pa.string()),
    ("error", pa.string()),
    ("chosen", pa.bool_()),
]
FIXED: Final = {
    **dict([*PROPOSAL_COLUMNS, *COST_COLUMNS, *VERDICT_COLUMNS, *LAST_COLUMNS]),
    "objective": pa.float64(),
}
"""The columns that every log has, with their types."""
NAMED_ROLES: Final = ("score", "judge", "heatmap")
_OLD_NAMES: Final = {"draw_seconds": "generate_seconds", "judge_seconds": "verify_seconds"}
"""Columns of schema 1 and their names in schema 2."""


def names_of(schema: pa.Schema, role: str) -> list[str]:
    """Returns the names of one role in a schema: "generator", "score", "judge" or "heatmap"."""
    return [
        f.metadata[b"name"].decode()
        for f in schema
        if f.metadata and f.metadata.get(b"role") == role.encode()
    ]


def run_columns(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Returns the columns that a schema's roles and names ask for, with their types."""
    columns = {name: pa.float64() for name in names_of(schema, "score")}
    columns |= {f"judge_{name}": pa.float64() for name in names_of(schema, "judge")}
    for name in names_of(schema, "heatmap"):
        columns[f"heatmap_{name}_path"] = columns[f"heatmap_{name}_sha256"] = pa.string()
        columns[f"heatmap_{name}_box"] = BOX_TYPE
    return columns


def check_columns(schema: pa.Schema) -> None:
    """Raises ValueError or KeyError unless a table has the columns of a log, with their types."""
    named = run_columns(schema)
    if taken := FIXED.keys() & named.keys():
        raise ValueError(f"it calls {', '.join(sorted(taken))} a score")
    for name, kind in (FIXED | named).items():
        # A name that occurs twice has no place either.
        place = schema.get_field_index(name)
        if place < 0:
            raise ValueError(f"it has no column {name}")
        if not schema.field(place).type.equals(kind):
            raise ValueError(f"its column {name} is {schema.field(place).type}, not {kind}")


def upgraded_schema(schema: pa.Schema) -> pa.Schema:
    """Returns a table's schema with the names of schema 2; the order of columns stays.

    Schema 1 has `draw_seconds` and `judge_seconds` for the times, and `draw_NAME` for the
    generator's settings. Only a table of schema 1 has a column `draw_seconds` without a role.
    """
    if "draw_seconds" not in schema.names or schema.field("draw_seconds").metadata:
        return schema

    def renamed(f: pa.Field) -> pa.Field:
        if f.metadata and f.metadata.get(b"role") == b"draw":
            metadata = {**f.metadata, b"role": b"generator"}
            return f.with_name(f"generator_{f.name.removeprefix('draw_')}").with_metadata(metadata)
        return f.with_name(_OLD_NAMES.get(f.name, f.name)) if not f.metadata else f

    return pa.schema([renamed(f) for f in schema])
