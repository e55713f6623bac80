"""What can have happened to a run folder before somebody gives it to a command."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq


class Scene(NamedTuple):
    """A folder to damage, and what lies beside it."""

    folder: Path
    decoy: Path
    """Files that must not change."""
    foreign: Path
    """A finished run folder of other seeds."""
    foreign_broken: Path
    """An interrupted one."""
    dice: random.Random


class Damage(NamedTuple):
    """One way to damage a folder."""

    apply: Callable[[Scene], None]
    forged: bool = False
    """Whether somebody wrote other values and digests that fit: nobody can know the right ones."""
    may_refuse: bool = False
    """Whether `tts-run` may refuse the folder instead of repairing it."""


DAMAGES: dict[str, Damage] = {}


def _damage(name: str, **options: bool) -> Callable[[Callable[[Scene], None]], None]:
    def note(function: Callable[[Scene], None]) -> None:
        DAMAGES[name] = Damage(function, **options)

    return note


def _files(scene: Scene, *patterns: str) -> list[Path]:
    return sorted(p for pattern in patterns for p in scene.folder.glob(pattern) if p.is_file())


_MADE = ("images/*", "heatmaps/*", "masks/*", "states/*")
_TABLES = ("parts/*.parquet", "trials.parquet")


def _some(scene: Scene, *patterns: str) -> Path | None:
    found = _files(scene, *patterns)
    return scene.dice.choice(found) if found else None


# -- accidents ------------------------------------------------------------------------------------


def _spoil(path: Path | None, dice: random.Random) -> None:
    if path is None:
        return
    content = bytearray(path.read_bytes())
    place = dice.randrange(max(len(content), 1))
    action = dice.randrange(4)
    if action == 0:
        del content[place:]
    elif action == 1 and content:
        content[place] ^= 1 << dice.randrange(8)
    elif action == 2:
        content += b"more"
    else:
        content = bytearray(len(content))
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    # A power cut leaves torn files with old times; a clock may have jumped.
    os.utime(path, ns=(before - 10**12 * dice.randrange(2),) * 2)


@_damage("a torn picture or map")
def _(scene: Scene) -> None:
    _spoil(_some(scene, *_MADE), scene.dice)


@_damage("a torn part or table")
def _(scene: Scene) -> None:
    _spoil(_some(scene, *_TABLES), scene.dice)


@_damage("a file is gone")
def _(scene: Scene) -> None:
    if path := _some(scene, *_MADE, *_TABLES, "trials.sha256", "waiting/*"):
        path.unlink()


@_damage("a folder is gone")
def _(scene: Scene) -> None:
    names = ("images", "heatmaps", "masks", "states", "parts", "waiting", "chosen")
    shutil.rmtree(scene.folder / scene.dice.choice(names), ignore_errors=True)


@_damage("pictures swapped")
def _(scene: Scene) -> None:
    files = _files(scene, scene.dice.choice(_MADE[:3]))
    if len(files) >= 2:
        one, other = scene.dice.sample(files, 2)
        old = min(one.stat().st_mtime_ns, other.stat().st_mtime_ns)
        held = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(held)
        for path in (one, other):
            os.utime(path, ns=(old, old))


@_damage("digests gone or odd")
def _(scene: Scene) -> None:
    path = scene.folder / "trials.sha256"
    content = scene.dice.choice(
        (None, b"", b"\n\n", b"\xff\xfe", b"0" * 64 + b"  trials.parquet\n", b" ")
    )
    if content is None:
        path.unlink(missing_ok=True)
    elif (scene.folder / "trials.parquet").exists():
        path.write_bytes(content)
    if scene.dice.random() < 0.5:
        _spoil(_some(scene, "trials.parquet"), scene.dice)


@_damage("a name that is not a file of its own")
def _(scene: Scene) -> None:
    """A folder, FIFO, or link that leads nowhere or in a circle, named as a file of the log."""
    names = ("parts/00000099.0.0123456789abcdef.parquet", "parts/00000099.parquet", "parts/x",
             "waiting/x.json", "states/x.npz", "drafts/1.x.png")  # fmt: skip
    path = scene.folder / scene.dice.choice(names)
    path.parent.mkdir(exist_ok=True)
    _clear(path)
    _odd_entry(path, scene.dice)


def _odd_entry(path: Path, dice: random.Random) -> None:
    action = dice.randrange(4)
    if action == 0:
        path.mkdir()
    elif action == 1:
        os.mkfifo(path)
    elif action == 2:
        path.symlink_to("nowhere")
    else:
        path.symlink_to(path.name)


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@_damage("the header or lock is not a file", may_refuse=True)
def _(scene: Scene) -> None:
    tables = ("trials.parquet", "trials.sha256")
    names = ("header.json", "lock", *tables, "chosen.png", "aside", "replay.svg", "report.html")
    path = scene.folder / scene.dice.choice(names)
    _clear(path)
    _odd_entry(path, scene.dice)


@_damage("drafts and notes of a killed process")
def _(scene: Scene) -> None:
    for name in ("drafts/1.x.png", "parts/.hidden", "chosen/old.png"):
        (scene.folder / name).parent.mkdir(exist_ok=True)
        (scene.folder / name).write_bytes(b"half")


# -- files of other runs --------------------------------------------------------------------------


@_damage("a part of another run")
def _(scene: Scene) -> None:
    part = scene.dice.choice(sorted(scene.foreign_broken.glob("parts/*.parquet")))
    (scene.folder / "parts").mkdir(exist_ok=True)
    number = scene.dice.choice(("00000000", "00000001", "00000099"))
    shutil.copy(part, scene.folder / "parts" / f"{number}{part.name[8:]}")


@_damage("the table of another run")
def _(scene: Scene) -> None:
    shutil.copy(scene.foreign / "trials.parquet", scene.folder)
    if scene.dice.random() < 0.7:
        shutil.copy(scene.foreign / "trials.sha256", scene.folder)
    else:
        (scene.folder / "trials.sha256").unlink(missing_ok=True)


@_damage("the table of another run among the parts")
def _(scene: Scene) -> None:
    content = (scene.foreign / "trials.parquet").read_bytes()
    (scene.folder / "parts").mkdir(exist_ok=True)
    digest = hashlib.sha256(content).hexdigest()[:16]
    name = scene.dice.choice(("00000007.parquet", f"00000007.0.{digest}.parquet"))
    (scene.folder / "parts" / name).write_bytes(content)


@_damage("the header of another run", may_refuse=True)
def _(scene: Scene) -> None:
    shutil.copy(scene.foreign / "header.json", scene.folder)


@_damage("pictures of another run")
def _(scene: Scene) -> None:
    for kind in ("images", "heatmaps"):
        files, others = _files(scene, f"{kind}/*"), sorted((scene.foreign / kind).iterdir())
        for path, other in zip(files, others, strict=False):
            old = path.stat().st_mtime_ns
            path.write_bytes(other.read_bytes())
            os.utime(path, ns=(old, old))


# -- JSON that is something else ------------------------------------------------------------------

_ODD_JSON = (
    b"", b"null", b"[]", b"{}", b"1", b'"x"', b"\xff\xfe{", b"[" * 100_000, b'{"a":' * 100_000,
    b'{"schema_version": 2}', b'{"schema_version": "2", "about": {}}', b"NaN",
    b'{"schema_version": 2, "about": null}', b'{"schema_version": 2, "about": [1]}',
    b'{"schema_version": 1, "about": 3}', b'{"schema_version": 1e999, "about": {}}',
    b'{"schema_version": 2, "about": {}, "sessions": 7}', b'{"schema_version": [2], "about": {}}',
    b'{"schema_version": 1, "about": {"generator": []}, "sessions": [1]}', b"{" + b" " * 10**6,
    b'{"schema_version": 2, "about": {"prompts": [1], "strategy": 3, "generator": "x"}}',
    b'{"schema_version": 2, "about": {"a":' + b"[" * 900 + b"]" * 900 + b"}}",
    b'{"schema_version": 2, "about": {"generator": {}}, "extended": 3}', b"9" * 10**5,
    b'{"schema_version": true, "about": {"generator": {"model": {"a": 1}}}}', b'{"a": "\\ud800"}',
)  # fmt: skip


@_damage("an odd header", may_refuse=True)
def _(scene: Scene) -> None:
    (scene.folder / "header.json").write_bytes(scene.dice.choice(_ODD_JSON))


@_damage("a header with one odd value", forged=True, may_refuse=True)
def _(scene: Scene) -> None:
    path = scene.folder / "header.json"
    header: Any = json.loads(path.read_bytes())
    table = header if scene.dice.random() < 0.4 else header["about"]
    odd = (None, 3, "x", [], {}, [1], {"a": 1}, -1, 1e308, "\ud800", [[[]]], True, "../../decoy")
    table[scene.dice.choice(list(table))] = scene.dice.choice(odd)
    path.write_text(json.dumps(header))


@_damage("an odd lock", may_refuse=True)
def _(scene: Scene) -> None:
    more = (b'{"pid": [], "host": 3}', b'{"host": null, "boot": {}}', b'{"pid": 1, "host": "x"}')
    (scene.folder / "lock").write_bytes(scene.dice.choice((*_ODD_JSON, *more)))


@_damage("an odd note on unverified samples", forged=True)
def _(scene: Scene) -> None:
    path = _some(scene, "waiting/*.json") or scene.folder / "waiting" / "x.json"
    path.parent.mkdir(exist_ok=True)
    image = (str(scene.decoy / "photo.png"), "../../decoy/photo.png", 3, None, "images")
    entry = {
        "image": [scene.dice.choice(image), "0" * 64],
        "state": [scene.dice.choice(image), "0"],
    }
    names = ["x", "../../../decoy/letter", *(p.stem for p in _files(scene, "images/*"))]
    notes = {name: {**entry, "progress": 1.0, "cost": {}} for name in names}
    content = scene.dice.choice((*_ODD_JSON, json.dumps(notes).encode()))
    path.write_bytes(content)


# -- somebody who means harm ----------------------------------------------------------------------


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
    _clear(path)
    path.symlink_to(goal)


@_damage("a link in the place of a picture", may_refuse=True)
def _(scene: Scene) -> None:
    if path := _some(scene, *_MADE, "waiting/*", *_TABLES):
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
    _clear(path)
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
    path = _some(scene, *_TABLES)
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
    path = _some(scene, *_TABLES)
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
    path = _some(scene, *_TABLES)
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
