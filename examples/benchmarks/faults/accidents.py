"""Accidents of a run folder: files torn, gone, swapped, of another run, or of something else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from faults.scene import MADE, TABLES, Damage, Scene, clear, damage, files_of, some_file

ACCIDENTS: dict[str, Damage] = {}
_damage = partial(damage, ACCIDENTS)

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
    _spoil(some_file(scene, *MADE), scene.dice)


@_damage("a torn part or table")
def _(scene: Scene) -> None:
    _spoil(some_file(scene, *TABLES), scene.dice)


@_damage("a file is gone")
def _(scene: Scene) -> None:
    if path := some_file(scene, *MADE, *TABLES, "trials.sha256", "waiting/*"):
        path.unlink()


@_damage("a folder is gone")
def _(scene: Scene) -> None:
    names = ("images", "heatmaps", "masks", "states", "parts", "waiting", "chosen")
    shutil.rmtree(scene.folder / scene.dice.choice(names), ignore_errors=True)


@_damage("pictures swapped")
def _(scene: Scene) -> None:
    files = files_of(scene, scene.dice.choice(MADE[:3]))
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
        _spoil(some_file(scene, "trials.parquet"), scene.dice)


@_damage("a name that is not a file of its own")
def _(scene: Scene) -> None:
    """A folder, FIFO, or link that leads nowhere or in a circle, named as a file of the log."""
    names = ("parts/00000099.0.0123456789abcdef.parquet", "parts/00000099.parquet", "parts/x",
             "waiting/x.json", "states/x.npz", "drafts/1.x.png")  # fmt: skip
    path = scene.folder / scene.dice.choice(names)
    path.parent.mkdir(exist_ok=True)
    clear(path)
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


@_damage("the header or lock is not a file", may_refuse=True)
def _(scene: Scene) -> None:
    tables = ("trials.parquet", "trials.sha256")
    names = ("header.json", "lock", *tables, "chosen.png", "aside", "replay.svg", "report.html")
    path = scene.folder / scene.dice.choice(names)
    clear(path)
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
        files, others = files_of(scene, f"{kind}/*"), sorted((scene.foreign / kind).iterdir())
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
    path = some_file(scene, "waiting/*.json") or scene.folder / "waiting" / "x.json"
    path.parent.mkdir(exist_ok=True)
    image = (str(scene.decoy / "photo.png"), "../../decoy/photo.png", 3, None, "images")
    entry = {
        "image": [scene.dice.choice(image), "0" * 64],
        "state": [scene.dice.choice(image), "0"],
    }
    names = ["x", "../../../decoy/letter", *(p.stem for p in files_of(scene, "images/*"))]
    notes = {name: {**entry, "progress": 1.0, "cost": {}} for name in names}
    content = scene.dice.choice((*_ODD_JSON, json.dumps(notes).encode()))
    path.write_bytes(content)
