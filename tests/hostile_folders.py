"""Run folders as an accident or a stranger leaves them, beside files that must never change.

`Site.copy` makes a folder of a small run, finished or killed, beside a tree of decoys. A `Damage`
changes it; `try_everything` then reads and continues it. It raises AssertionError where anything
but an error of the package comes out, where the decoys change, or where a run that went to its
end has other rows than an unharmed one.
"""

import atexit
import hashlib
import json
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from types import MappingProxyType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from killing import DyingGenerator, DyingVerifier, Killed
from PIL import Image
from searches import InpaintReroll, SeedBeam

from tts_verifier import run
from tts_verifier.errors import RunWarning, TTSError
from tts_verifier.interfaces import Strategy
from tts_verifier.log import read_header, read_picks, read_trials
from tts_verifier.testing import FakeGenerator, FakeVerifier

PROMPTS = ["a red circle", "a blue star"]
STRATEGIES: dict[str, Strategy] = {
    "finished": InpaintReroll(2, 1),
    "repaints": InpaintReroll(2, 1),
    "states": SeedBeam(2, (0.5, 1.0)),
    "notes": InpaintReroll(2, 1),
}
"""The runs, by name: one that has finished, and killed ones with masks, states and notes."""
FOLDERS = [
    "images", "heatmaps", "masks", "states", "parts", "waiting", "aside", "drafts", "chosen",
]  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A run folder and, beside it, files of the user."""

    kind: str
    run: Path
    decoys: Path

    @classmethod
    def copy(cls, kind: str, root: Path) -> "Site":
        """Copies the run of a kind to `root / "run"` and makes the decoys."""
        site = cls(kind, root / "run", root / "decoys")
        shutil.copytree(_template(kind, 0), site.run)
        for folder in FOLDERS:
            (site.decoys / folder).mkdir(parents=True)
            for name in ("mine.png", "mine.npz", "mine.json", "00000000.parquet"):
                (site.decoys / folder / name).write_text(f"{folder} {name}")
        Image.new("RGB", (16, 16), "green").save(site.decoys / "picture.png")
        for name in ("header.json", "lock", "trials.parquet", "trials.sha256"):
            (site.decoys / name).write_text("{}")
        return site

    def files(self) -> list[Path]:
        """Returns all files of the run folder, in a fixed order."""
        return sorted(p for p in self.run.rglob("*") if p.is_file() and not p.is_symlink())


def continued(kind: str, folder: Path) -> pd.DataFrame:
    """Continues a run to its end and returns its rows, without what depends on the clock."""
    run(PROMPTS, FakeGenerator(batch_size=2), FakeVerifier(), STRATEGIES[kind], folder=folder)
    table = pd.read_parquet(folder / "trials.parquet").sort_values("trial_id")
    return table.drop(columns=["generate_seconds", "verify_seconds"]).reset_index(drop=True)


def _scratch() -> Path:
    """Returns the path of a run folder that goes with the process."""
    place = mkdtemp()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place) / "run"


@lru_cache
def _template(kind: str, seed: int) -> Path:
    folder = _scratch()
    generator: FakeGenerator = FakeGenerator(batch_size=2)
    verifier: FakeVerifier = FakeVerifier()
    if kind in ("repaints", "states"):
        generator = DyingGenerator(3)
        generator.batch_size = 2
    if kind == "notes":
        verifier = DyingVerifier(1)
    with suppress(Killed):
        run(
            PROMPTS, generator, verifier, STRATEGIES[kind],
            folder=folder, seed=seed, overlap=kind == "notes",
        )  # fmt: skip
    return folder


@lru_cache
def unharmed(kind: str) -> pd.DataFrame:
    """Returns the rows that the run of a kind has in the end."""
    folder = _scratch()
    shutil.copytree(_template(kind, 0), folder)
    return continued(kind, folder)


def tree_digest(folder: Path) -> str:
    """Returns a digest of the names, kinds, modes and contents of a whole tree."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        digest.update(f"{path.relative_to(folder)} {about.st_mode} {about.st_mtime_ns}".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


# -- damages -------------------------------------------------------------------------------

Damage = Callable[[Site, random.Random], None]


def hostile_paths(site: Site, dice: random.Random) -> list[str]:
    """Returns texts that a row might hold as a path."""
    other = dice.choice(site.files()).relative_to(site.run).as_posix()
    letters = "".join(chr(dice.choice([*range(32, 127), 0, 47, 46, 92, 233])) for _ in range(9))
    return [
        str(site.decoys / "picture.png"), "../decoys/picture.png",
        "images/../../decoys/picture.png",
        "states/../../decoys/states/mine.npz", "masks/../../decoys/masks/mine.png", "..", ".", "/",
        "images", "images/", "header.json", "trials.parquet", "\0", "x" * 300, "~/x", "C:\\x",
        "..\\decoys\\picture.png", "images//x.png", "file:///etc/passwd", letters,
        f"images/{letters}", other,
    ]  # fmt: skip


def forge(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edits the rows of all tables as somebody could who knows how logs are bound together."""

    def edited(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for row in rows:
            edit(row)
        return pa.Table.from_pylist(rows, schema=table.schema)

    forge_tables(folder, edited)


def forge_tables(
    folder: Path,
    change: Callable[[pa.Table], pa.Table],
    more: Mapping[bytes, bytes] = MappingProxyType({}),
) -> None:
    """Replaces the tables of a run folder as `forge` does, with more metadata."""
    for path in [*sorted((folder / "parts").glob("*.parquet")), folder / "trials.parquet"]:
        if not path.exists():
            continue
        table = change(pq.read_table(path))
        metadata = {k: v for k, v in pq.read_metadata(path).metadata.items() if k[:4] == b"tts_"}
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.add_key_value_metadata(metadata | dict(more))
            writer.write_table(table)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.parent.name == "parts":
            number, level, _ = path.name.split(".", 2)
            path.rename(path.with_name(f"{number}.{level}.{digest[:16]}.parquet"))
        else:
            header = json.loads((folder / "header.json").read_bytes())
            header["table"] = [digest]
            (folder / "header.json").write_text(json.dumps(header))


def odd_paths_in_rows(site: Site, dice: random.Random) -> None:
    ends = ["image", "state", "mask", "heatmap_artifact", "heatmap_misalignment"]
    digest = hashlib.sha256((site.decoys / "picture.png").read_bytes()).hexdigest()

    def edit(row: dict[str, Any]) -> None:
        for column in ends:
            if row.get(f"{column}_path") and dice.random() < 0.5:
                row[f"{column}_path"] = dice.choice(hostile_paths(site, dice))
                row[f"{column}_sha256"] = dice.choice([digest, row[f"{column}_sha256"], "../x", ""])

    forge(site.run, edit)


def null_values_in_rows(site: Site, dice: random.Random) -> None:
    columns = ["progress", "round", "image_width", "heatmap_artifact_box", "network_evaluations"]
    column = dice.choice([*columns, "image_sha256", "proposal", "kind", "trial_id", "prompt_id"])

    def edit(row: dict[str, Any]) -> None:
        if dice.random() < 0.5:
            row[column] = None

    forge(site.run, edit)


def a_link_for_a_folder(site: Site, dice: random.Random) -> None:
    name = dice.choice(FOLDERS)
    if (site.run / name).is_dir():
        (site.run / name).rename(site.run / f"{name}.moved")
    (site.run / name).symlink_to(site.decoys / name)


def _victim(site: Site, dice: random.Random) -> Path:
    names = ["lock", "trials.sha256", "header.json", "trials.parquet", "chosen.png"]
    return dice.choice([*site.files(), *(site.run / name for name in names)])


def something_else_for_a_file(site: Site, dice: random.Random) -> None:
    victim = _victim(site, dice)
    victim.unlink(missing_ok=True)
    kind = dice.choice(["link", "dangling", "self", "fifo", "folder", "hard", "socket-like name"])
    if kind == "link":
        victim.symlink_to(site.decoys / dice.choice(["picture.png", "lock", "header.json"]))
    elif kind == "dangling":
        victim.symlink_to(site.decoys / "nothing")
    elif kind == "self":
        victim.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(victim)
    elif kind == "folder":
        victim.mkdir()
        (victim / "x").write_text("x")
    elif kind == "hard":
        os.link(site.decoys / "lock", victim)


def content_damaged(site: Site, dice: random.Random) -> None:
    victim = dice.choice(site.files())
    content, about = victim.read_bytes(), victim.stat()
    place = dice.randrange(max(len(content), 1))
    flipped = (
        content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :]
    )
    deep = b"[" * 100_000
    new = dice.choice(
        [content[:place], flipped, b"", deep, b'{"a":' * 5000, b"\xff\xfe", b"1" * 9999]
    )
    victim.write_bytes(new)
    if dice.random() < 0.5:
        os.utime(victim, ns=(about.st_atime_ns, about.st_mtime_ns))


def files_swapped(site: Site, dice: random.Random) -> None:
    one = dice.choice(
        [p for p in site.files() if p.suffix in (".png", ".npz", ".json", ".parquet")]
    )
    other = dice.choice([p for p in site.files() if p.suffix == one.suffix])
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def foreign_files_copied(site: Site, dice: random.Random) -> None:
    other = _template(dice.choice(["finished", site.kind]), 1)
    files = [p for p in sorted(other.rglob("*")) if p.is_file() and p.name != "header.json"]
    for path in dice.sample(files, min(len(files), dice.choice([1, 3, 100]))):
        goal = site.run / path.relative_to(other)
        goal.parent.mkdir(exist_ok=True)
        shutil.copy2(path, goal)


def odd_names(site: Site, dice: random.Random) -> None:
    long = "y" * 240 + ".parquet"
    digest = "0123456789abcdef.parquet"
    names = [long, f"00000099.0.{digest}", f"99999999999999999999.0.{digest}", "a\nb", ".x", "-rf"]
    path = (
        site.run
        / dice.choice(["parts", "waiting", "states", "drafts", "aside"])
        / dice.choice(names)
    )
    path.parent.mkdir(exist_ok=True)
    dice.choice(
        [
            lambda: path.symlink_to(site.decoys / "picture.png"),
            lambda: path.symlink_to("nothing"),
            lambda: path.mkdir(),
            lambda: os.mkfifo(path),
            lambda: path.write_bytes(b"x"),
        ]
    )()


def odd_values_in_json(site: Site, dice: random.Random) -> None:
    path = dice.choice([p for p in site.files() if p.suffix == ".json"])
    values = json.loads(path.read_bytes())
    odd: list[Any] = [
        None,
        True,
        -1,
        1e300,
        10**400,
        "../../decoys",
        [],
        {},
        [[1]],
        "\ud800",
        "x" * 9,
    ]
    target: Any = values
    while isinstance(target, dict) and target:
        key = dice.choice(sorted(target))
        if not isinstance(target[key], dict) or dice.random() < 0.4:
            target[key] = dice.choice(odd)
            break
        target = target[key]
    path.write_text(json.dumps(values))


def odd_lock(site: Site, dice: random.Random) -> None:
    texts = [
        '{"pid": 1e99}',
        '{"pid": "x", "host": []}',
        "[" * 4000,
        "\0" * 4096,
        "[]",
        '{"boot": 7}',
    ]
    (site.run / "lock").write_text(
        dice.choice([*texts, '{"pid": 10, "host": "\x1b[31melsewhere"}'])
    )


DAMAGES: list[Damage] = [
    odd_paths_in_rows, null_values_in_rows, a_link_for_a_folder, something_else_for_a_file,
    content_damaged, files_swapped, foreign_files_copied, odd_names, odd_values_in_json, odd_lock,
]  # fmt: skip


# -- what is tried -------------------------------------------------------------------------


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the main thread after a time that only a hang takes."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_everything(site: Site, seconds: int = 60) -> str:
    """Reads and continues a folder; returns "refused", "mended" or "as if unharmed".

    Raises:
        AssertionError: the decoys changed, or the rows are not those of an unharmed run.
    """
    decoys = tree_digest(site.decoys)
    expected = unharmed(site.kind)
    with within(seconds), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(site.run)
        try:
            rows = continued(site.kind, site.run)
        except TTSError as error:
            rows, message = None, str(error)
    assert tree_digest(site.decoys) == decoys, "nothing outside the folder is written or moved"
    assert {w.category for w in caught} <= {RunWarning}
    if rows is None:
        assert len(message) < 4000, "a message is a line or a few, not a dump"
        return "refused"
    pd.testing.assert_frame_equal(rows, expected)
    assert {t.id for t in read_trials(site.run)} == set(rows.trial_id)
    return "mended" if caught else "as if unharmed"


def read(folder: Path) -> None:
    """Reads everything in a folder as reports do; errors of the package are fine."""
    with suppress(TTSError):
        read_header(folder)
    with suppress(TTSError):
        trials = read_trials(folder)
        read_picks(folder, [t.id for t in trials])
        for trial in trials:
            maps = {} if trial.verdict is None else trial.verdict.heatmaps.stored
            for stored in (trial.image, trial.state, *maps.values()):
                with suppress(TTSError):
                    assert stored is None or stored.load() is not None
