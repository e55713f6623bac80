"""The published table's layout as text, and the figures as files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tts_verifier.errors import InputError, RunError
from tts_verifier.evaluation.evaluate import EvaluatedPicture, figures
from tts_verifier.evaluation.published import PUBLISHED, SOURCE
from tts_verifier.evaluation.rated import ASPECTS, MARKED_MAPS

Figures = Mapping[str, Mapping[str, float]]

_MAP_COLUMNS: Final = {
    "mse": "MSE",
    "mse_empty": "MSE, empty",
    "cc": "CC",
    "kld": "KLD",
    "sim": "SIM",
    "nss": "NSS",
    "auc_judd": "AUC-J",
}
_ABSENT: Final = "–"


def table_text(name: str, pictures: Sequence[EvaluatedPicture], resolution: int) -> str:
    """Returns the table of a verifier beside the published figures.

    Args:
        name: the verifier's, for its rows.
        pictures: from `evaluate`.
        resolution: at which the maps were compared.
    """
    found = figures(pictures)
    columns = {a: a.replace("_", " ") for a in (*ASPECTS, "average")}
    rows: list[Sequence[str]] = [["PLCC / SRCC", *columns.values()]]
    rows += [[n, *(_pair(f.get(c, {})) for c in columns)] for n, f in _methods(name, found)]
    rows.append(["missing scores", *(str(int(found[a]["missing"])) for a in ASPECTS), ""])
    parts = [f"{len(pictures)} pictures; maps compared at {resolution} x {resolution} pixels"]
    parts.append(_aligned(rows))
    for heatmap in MARKED_MAPS:
        missing, marked = (int(found[heatmap][key]) for key in ("missing", "marked"))
        rows = [[f"{heatmap} map", *_MAP_COLUMNS.values()]]
        rows += [
            [n, *(_number(f[heatmap].get(m), m) for m in _MAP_COLUMNS)]
            for n, f in _methods(name, found)
            if heatmap in f
        ]
        note = f"missing maps: {missing} of {len(pictures)}; marked and compared: {marked}"
        parts.append(f"{_aligned(rows)}\n{note}")
    parts.append(f"The other rows: {SOURCE}.")
    return "\n\n".join(parts)


def write_figures(
    path: Path, name: str, pictures: Sequence[EvaluatedPicture], resolution: int
) -> None:
    """Writes .json, the figures, or .parquet, a row for each picture, for paired intervals.

    Raises:
        InputError: the file has another suffix.
        RunError: the file cannot be written.
    """
    check_output(path)
    draft = path.with_name(f"{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            summary: dict[str, Any] = {
                "verifier": name,
                "pictures": len(pictures),
                "resolution": resolution,
                "figures": _plain(figures(pictures)),
                "published": {m.name: _plain(m.figures) for m in PUBLISHED},
                "source": SOURCE,
            }
            draft.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        else:
            import pyarrow
            from pyarrow import parquet

            rows = [{"verifier": name, **picture.as_row()} for picture in pictures]
            parquet.write_table(pyarrow.Table.from_pylist(rows), draft)
        # A reader never sees half a file.
        draft.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error


def check_output(path: Path) -> None:
    """Raises InputError unless a file of figures may have this name."""
    # As a path, `s3://bucket` is the folder `s3:` of the working folder; `c:` is a drive.
    is_address = path.as_posix().partition("/")[0][2:].endswith(":")
    if is_address or path.suffix not in (".json", ".parquet"):
        raise InputError(
            f"Figures are written to a .json or .parquet file on a file system, got {path}."
        )


def _methods(name: str, found: Figures) -> list[tuple[str, Figures]]:
    return [(name, found), *((m.name, m.figures) for m in PUBLISHED)]


def _plain(found: Figures) -> dict[str, dict[str, float | None]]:
    return {
        name: {k: None if math.isnan(v) else v for k, v in values.items()}
        for name, values in found.items()
        if values
    }


def _pair(values: Mapping[str, float]) -> str:
    return f"{_number(values.get('plcc'))} / {_number(values.get('srcc'))}"


def _number(value: float | None, measure: str = "") -> str:
    if value is None or math.isnan(value):
        return _ABSENT
    return f"{value:.5f}" if measure.startswith("mse") else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
