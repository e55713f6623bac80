"""Damages by somebody who means harm: links that lead outside, and tables with forged values."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from faults.scene import MADE, TABLES, Damage, Scene, clear, damage, some_file

FORGERIES: dict[str, Damage] = {}
_damage = partial(damage, FORGERIES)


@_damage("a link in the place of a file", may_refuse=True)
def _(scene: Scene) -> None:
    names = ("lock", "header.json", "trials.parquet", "trials.sha256", "trials.new", "chosen.png",
             "replay.svg", "report.html", "chosen/0000.png", "chosen/0001.png")  # fmt: skip
    path = scene.folder / scene.dice.choice(names)
    path.parent.mkdir(exist_ok=True)
    if path.is_file() and scene.dice.random() < 0.5:
        # The same content, elsewhere: it is found, and must still not be written.
        goal = scene.decoy / "run" / "header.json"
    else:
        goal = scene.decoy / scene.dice.choice(("letter.txt", "photo.png", "new.txt"))
    clear(path)
    path.symlink_to(goal)


@_damage("a link in the place of a picture", may_refuse=True)
def _(scene: Scene) -> None:
    if path := some_file(scene, *MADE, "waiting/*", *TABLES):
        path.unlink()
        path.symlink_to(scene.decoy / scene.dice.choice(("photo.png", "letter.txt", "new.png")))


@_damage("a link in the place of a folder", may_refuse=True)
def _(scene: Scene) -> None:
    names = (
        "images",
        "heatmaps",
        "masks",
        "states",
        "parts",
        "waiting",
        "drafts",
        "aside",
        "chosen",
    )
    path = scene.folder / scene.dice.choice(names)
    clear(path)
    path.symlink_to(scene.decoy / scene.dice.choice(("", "states", "images")))


_PATHS: tuple[Callable[[Path], str], ...] = (
    lambda decoy: str(decoy / "photo.png"),
    lambda decoy: str(decoy / "letter.txt"),
    lambda decoy: "../../decoy/letter.txt",
    lambda decoy: "images/../../../decoy/photo.png",
    lambda decoy: "../../decoy",
    lambda decoy: "../run/header.json",
    lambda decoy: "header.json",
    lambda decoy: ".",
    lambda decoy: "images",
    lambda decoy: "/dev/zero",
    lambda decoy: "a\0b",
    lambda decoy: "x" * 5000,
    lambda decoy: "C:\\x.png",
    lambda decoy: "\u202e\x1b[31m<script>alert(1)</script>.png",
    lambda decoy: "images/link.png",
)


@_damage("a path that leads outside", forged=True, may_refuse=True)
def _(scene: Scene) -> None:
    (scene.folder / "images" / "link.png").symlink_to(scene.decoy / "photo.png")
    value = scene.dice.choice(_PATHS)(scene.decoy)

    def change(columns: dict[str, list[Any]]) -> None:
        paths = sorted(c for c in columns if c.endswith("_path"))
        for column in scene.dice.sample(paths, scene.dice.randint(1, len(paths))):
            columns[column] = [value] * len(columns[column])
        if scene.dice.random() < 0.5:
            # With the digest of the file outside, it would even be found unchanged.
            digest = hashlib.sha256((scene.decoy / "photo.png").read_bytes()).hexdigest()
            for column in (c for c in columns if c.endswith("_sha256")):
                columns[column] = [digest] * len(columns[column])

    _forge(scene, change)


_ODD_TEXTS = (
    None, "", "../../../decoy/letter", "x" * 5000, "[" * 3000, "{}", "null", "\x00", "é<b>",
    '{"kind": "draw"}', '{"kind": "repaint", "mask": "../../decoy/photo"}', "0" * 64,
)  # fmt: skip


@_damage("odd values in rows", forged=True, may_refuse=True)
def _(scene: Scene) -> None:
    texts = _ODD_TEXTS
    numbers = (None, 0, -1, 2**62, -(2**62))
    floats = (None, float("nan"), float("inf"), -1.0, 1e308)

    def change(columns: dict[str, list[Any]]) -> None:
        column = scene.dice.choice(sorted(columns))
        known = next((v for v in columns[column] if v is not None), "")
        odd: tuple[Any, ...] = texts
        if isinstance(known, bool | list | dict):
            odd = (None,)
        elif isinstance(known, int):
            odd = numbers
        elif isinstance(known, float):
            odd = floats
        rows = range(len(columns[column]))
        for place in scene.dice.sample(rows, scene.dice.randint(1, len(rows))):
            columns[column][place] = scene.dice.choice(odd)

    _forge(scene, change)


@_damage("odd types of columns", forged=True, may_refuse=True)
def _(scene: Scene) -> None:
    path = some_file(scene, *TABLES)
    if path is None:
        return
    table = pq.read_table(path)
    name = scene.dice.choice(table.column_names)
    place = table.schema.get_field_index(name)
    action = scene.dice.randrange(5)
    if action == 4:
        field = pa.field(name, pa.float64(), metadata={"role": "score", "name": name})
        table = table.set_column(place, field, pa.array([0.5] * len(table)))
    elif action == 0:
        table = table.drop_columns([name])
    elif action == 1:
        table = table.set_column(place, name, pa.array([[1]] * len(table)))
    elif action == 2:
        table = table.set_column(place, name, pa.array(["x"] * len(table)))
    else:
        field = pa.field(
            f"judge_{'x' * 3000}", pa.float64(), metadata={"role": "score", "name": "../x"}
        )
        table = table.append_column(field, pa.array([1.0] * len(table)))
    _write(scene, path, table)


@_damage("odd metadata of tables", forged=True, may_refuse=True)
def _(scene: Scene) -> None:
    path = some_file(scene, *TABLES)
    if path is None:
        return
    table = pq.read_table(path)
    rows = len(table)
    spans = (
        b"", b"{}", b"[1, 2]", b"[[1, 2], [3, [4]]]", b"[" * 3000, b"[[null], [1]]", b"\xff",
        b"[[%d], [%d]]" % (rows, 2**63), b"[[%d], [1.5]]" % rows, b"[[%d], [1]]" % 10**20,
        # The sum of these overflows, and then it is the number of rows.
        b"[[%d, %d, %d, %d], [1, 1, 1, 1]]" % (2**62, 2**62, 2**62, 2**62 + rows),
    )  # fmt: skip
    key = scene.dice.choice((b"tts_files_written", b"tts_files_written", b"tts_run"))
    _write(scene, path, table, {key: scene.dice.choice(spans)})


def _forge(scene: Scene, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Writes other values into a table, with digests that fit."""
    path = some_file(scene, *TABLES)
    if path is None:
        return
    table = pq.read_table(path)
    columns: dict[str, list[Any]] = table.to_pydict()
    change(columns)
    try:
        forged = pa.table(columns, schema=table.schema)
    except pa.ArrowInvalid:
        # A column that was null throughout does not show which values it takes.
        forged = pa.table(columns)
    _write(scene, path, forged)


def _write(
    scene: Scene, path: Path, table: pa.Table, more: Mapping[bytes, bytes] | None = None
) -> None:
    """Writes a table as somebody could who knows how tables are bound to their run."""
    known = pq.read_metadata(path).metadata or {}
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema) as writer:
        own = {key: value for key, value in known.items() if key.startswith(b"tts_")}
        writer.add_key_value_metadata(own | dict(more or {}))
        writer.write_table(table)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    if path.name == "trials.parquet":
        path.write_bytes(buffer.getvalue())
        (scene.folder / "trials.sha256").write_text(f"{digest}  trials.parquet\n")
        header = json.loads((scene.folder / "header.json").read_bytes())
        (scene.folder / "header.json").write_text(json.dumps(header | {"table": [digest]}))
    else:
        path.unlink()
        number, level, _, suffix = path.name.split(".")
        path.with_name(f"{number}.{level}.{digest[:16]}.{suffix}").write_bytes(buffer.getvalue())
