"""The rows of scores: their order, and how they are printed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final, Literal

from tts_verifier.choice.objective import order
from tts_verifier.types.score_names import written_scores

ScoreRow = dict[str, Any]
"""One image: `image` (path), `objective`, each score under its name, `boxes` and `reply`.

None stands for NaN. An image that cannot be scored has `error` instead of scores. Rows of a table
also have `prompt`, and rows that were written have `key`. A path with bytes that are no UTF-8 has
escapes in their place.
"""

_NOT_SCORES: Final = ("image", "prompt", "objective", "boxes", "reply", "key", "error")


def sorted_rows(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Returns the rows best first; rows without an objective come last."""
    values = [math.nan if row["objective"] is None else row["objective"] for row in rows]
    return [rows[i] for i in order(values)]


def format_rows(rows: Sequence[ScoreRow], form: Literal["table", "jsonl"]) -> str:
    """Returns the rows as an aligned table, or as one line of JSON each, with null for NaN."""
    if form == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    names = dict.fromkeys(
        name for row in rows for name in written_scores(row) if name not in _NOT_SCORES
    )
    lines = [["image", "objective", *names]]
    for row in rows:
        cells = [_cell(row.get(name)) for name in ("objective", *names)]
        lines.append([row["image"], *cells, *([row["error"]] if row.get("error") else [])])
    widths = [
        max(map(len, column))
        for column in zip(*(line[: len(lines[0])] for line in lines), strict=True)
    ]
    # The column of errors, which only some lines have, comes last and needs no padding.
    widths.append(0)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )


def _cell(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3f}"
