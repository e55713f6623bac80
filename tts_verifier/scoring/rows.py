"""The rows of scores: their order, the best of many, and how they are printed."""

from __future__ import annotations

import heapq
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np

from tts_verifier.choice.objective import order
from tts_verifier.types.score_names import written_scores

ScoreRow = dict[str, Any]
"""One image: `image` (path), `objective`, each score under its name, `boxes` and `reply`.

None stands for NaN. An image that cannot be scored has `error` instead of scores. Rows of a table
also have `prompt`, and rows that were written have `key`. A path with bytes that are no UTF-8 has
escapes in their place. A row of a picture that is moved or copied has `to`, its new path.
"""

OBJECTIVE: Final = "objective"
_NOT_SCORES: Final = ("image", "prompt", OBJECTIVE, "boxes", "reply", "key", "stamp", "error", "to")
_QUANTILES: Final = {"lowest": 0.0, "10 %": 0.1, "half": 0.5, "90 %": 0.9, "highest": 1.0}


def scores_of(row: ScoreRow) -> list[str]:
    """Returns the names of the verifier's scores in a row."""
    return [name for name in row if name not in _NOT_SCORES]


def value_of(row: ScoreRow, name: str = OBJECTIVE) -> float:
    """Returns a score of a row; NaN if it has none."""
    value = row.get(name)
    return math.nan if value is None else value


def sorted_rows(rows: Sequence[ScoreRow], by: str = OBJECTIVE) -> list[ScoreRow]:
    """Returns the rows best first by the objective or a score; rows without it come last."""
    return [rows[i] for i in order([value_of(row, by) for row in rows])]


def best_rows(rows: Iterable[ScoreRow], count: int, by: str = OBJECTIVE) -> list[ScoreRow]:
    """Returns the first `count` of `sorted_rows`; no more are in memory at a time."""

    def rank(entry: tuple[int, ScoreRow]) -> tuple[bool, float, int]:
        number, row = entry
        value = value_of(row, by)
        # As `order`: NaN last, and equal values as they come.
        return math.isnan(value), 0.0 if math.isnan(value) else -value, number

    return [row for _, row in heapq.nsmallest(count, enumerate(rows), key=rank)]


class ScoreSummary:
    """Counts rows, and keeps four bytes of each score for the quantiles."""

    def __init__(self) -> None:
        self.count = self.failed = 0
        self.first_error = ""
        self.values: dict[str, array[float]] = {}
        """Every score that is known, by its name."""

    def counted(self, rows: Iterable[ScoreRow]) -> Iterator[ScoreRow]:
        """Yields rows and counts them."""
        for row in rows:
            self.count += 1
            if "error" in row:
                self.failed += 1
                self.first_error = self.first_error or row["error"]
            else:
                for name in (OBJECTIVE, *scores_of(row)):
                    values = self.values.setdefault(name, array("f"))
                    if row[name] is not None:
                        values.append(row[name])
            yield row

    def table(self) -> str:
        """Returns the quantiles of the objective and of each score, aligned."""
        lines = [["", *_QUANTILES]]
        for name in written_scores(dict.fromkeys(self.values, 0.0)):
            values = self.values[name]
            found = np.quantile(values, list(_QUANTILES.values())) if values else [None] * 5
            lines.append([name, *map(_cell, found)])
        return _in_columns(lines)


def format_rows(rows: Sequence[ScoreRow], form: Literal["table", "jsonl"]) -> str:
    """Returns the rows as an aligned table, or as one line of JSON each, with null for NaN."""
    if form == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    names = dict.fromkeys(
        name for row in rows for name in written_scores(row) if name not in _NOT_SCORES
    )
    lines = [["image", OBJECTIVE, *names]]
    for row in rows:
        cells = [_cell(row.get(name)) for name in (OBJECTIVE, *names)]
        lines.append([row["image"], *cells, *([row["error"]] if row.get("error") else [])])
    return _in_columns(lines)


def _in_columns(lines: Sequence[Sequence[str]]) -> str:
    """Returns lines of cells; a line may have one more than the first, which is not padded."""
    widths = [
        max(map(len, column))
        for column in zip(*(line[: len(lines[0])] for line in lines), strict=True)
    ]
    widths.append(0)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )


def _cell(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3f}"
