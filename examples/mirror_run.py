"""Copies a run folder to an object store while the run goes on, and back to another machine.

    python examples/mirror_run.py runs/cores s3://bucket/cores --every 60
    python examples/mirror_run.py s3://bucket/cores runs/cores

Any store that fsspec knows will do: `s3://` (needs `pip install s3fs`), `gs://` (`gcsfs`), `abfs://`
(`adlfs`). Files of a run appear whole, and those that a row names appear before the row, so that a
copy of any instant is a run folder: the command that made the run continues it. What the copy lacks
is generated again. Locks are left out: they are those of this machine.

The program has been tried with `memory://` and `file://`, not with a real store.
"""

from __future__ import annotations

import json
import time
from pathlib import Path, PurePosixPath

import click
import fsspec

from tts_verifier.errors import RunError, TTSError
from tts_verifier.log import HEADER, read_header
from tts_verifier.types.paths import path_inside

Seen = dict[str, tuple[int, int] | None]
"""Path in the run folder -> time of its last change and size of the copied file."""
_LAST = ("done.json", HEADER)
"""The mark of a finished shard, and what names the digests of tables: after what they speak of."""


def upload(run: Path, address: str, seen: Seen | None = None) -> Seen:
    """Makes the files below an address those of a run folder.

    Args:
        run: the run folder.
        address: of a folder in the store.
        seen: what the last call returned; None = look into the store, and copy all.

    Raises:
        RunError: there is no run in the folder, or something else at the address.
    """
    store, place = fsspec.url_to_fs(address)
    header = read_header(run)
    if seen is None:
        seen = {path[len(place) :].lstrip("/"): None for path in store.find(place)}
        there = json.loads(store.cat_file(f"{place}/{HEADER}"))["run"] if HEADER in seen else None
        # A copy that was cut short has no header: its files are told from others by their names.
        own = {path.name for path in run.iterdir()}
        if there not in (None, header["run"]) or (
            there is None and not {name.partition("/")[0] for name in seen} <= own
        ):
            raise RunError(f"{address} has files of something else. Name another address.")
    now: Seen = {}
    for path in run.rglob("*"):
        name = path.relative_to(run)
        if path.is_symlink() or path.name == "lock" or "drafts" in name.parts:
            continue
        if path.is_file():
            about = path.stat()
            now[name.as_posix()] = (about.st_mtime_ns, about.st_size)
    changed = [name for name in now if seen.get(name) != now[name]]
    for folder in {str(PurePosixPath(place, name).parent) for name in changed}:
        store.makedirs(folder, exist_ok=True)
    for name in sorted(changed, key=lambda name: (name.endswith(_LAST), name)):
        try:
            store.put_file(str(run / name), f"{place}/{name}")
        except FileNotFoundError:
            if (run / name).exists():
                raise
            # A part that was merged meanwhile; the next call copies the merged one.
            del now[name]
    for name in seen.keys() - now.keys():
        store.rm_file(f"{place}/{name}")
    return now


def download(address: str, run: Path) -> None:
    """Copies the files below an address into a new run folder.

    Raises:
        RunError: there is no copy of a run, or a name in it leads out of the folder.
    """
    store, place = fsspec.url_to_fs(address)
    names = [path[len(place) :].lstrip("/") for path in store.find(place)]
    if HEADER not in names:
        raise RunError(f"{address} must have a copy of a run, and has no {HEADER}.")
    for name, goal in [(name, path_inside(run, name)) for name in names]:
        goal.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(f"{place}/{name}", str(goal))


@click.command()
@click.argument("source")
@click.argument("goal")
@click.option("--every", type=float, help="Seconds between copies, until Ctrl-C; default: once.")
def main(source: str, goal: str, every: float | None) -> None:
    """Copies a run folder to an object store, or back."""
    try:
        if "://" in source:
            if Path(goal).exists():
                raise click.UsageError(
                    f"{goal} must be a new folder, and exists. Name another one."
                )
            download(source, Path(goal))
            return
        seen = upload(Path(source), goal)
        while every is not None:
            time.sleep(every)
            seen = upload(Path(source), goal, seen)
    except TTSError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
