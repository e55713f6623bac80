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
import stat
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import click
import fsspec

from tts_verifier.errors import RunError, TTSError
from tts_verifier.log import HEADER, read_header
from tts_verifier.types.paths import path_inside

Seen = dict[str, tuple[int, int] | None]
"""Path in the run folder -> time of its last change and size of the copied file."""
_STORE_FAILS = (OSError, ImportError, ValueError)
"""What fsspec raises: out of reach, no permission, a package or a protocol that is not there."""
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
        there = _run_at(store, place) if HEADER in seen else None
        # A copy that was cut short has no header: its files are told from others by their names.
        own = {path.name for path in run.iterdir()}
        if there not in (None, header.get("run", "")) or (
            there is None and not {name.partition("/")[0] for name in seen} <= own
        ):
            raise RunError(f"{address} has files of something else. Name another address.")
    now = _files_of(run)
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
        # A call that failed may have deleted it.
        with suppress(FileNotFoundError):
            store.rm_file(f"{place}/{name}")
    return now


def _run_at(store: Any, place: str) -> str | None:
    """Returns the run that a header in the store names; "" if it names none, None if cut short."""
    try:
        return str(json.loads(store.cat_file(f"{place}/{HEADER}"))["run"])
    except ValueError:
        return None
    except (KeyError, TypeError):
        return ""


def _files_of(run: Path) -> Seen:
    """Returns the files of a run folder, without locks and what is only being written."""
    now: Seen = {}
    for path in run.rglob("*"):
        parts = path.relative_to(run).parts
        if path.name == "lock" or "drafts" in parts or any(p.startswith(".") for p in parts):
            continue
        # It may be gone since.
        with suppress(FileNotFoundError):
            about = path.lstat()
            if stat.S_ISREG(about.st_mode):
                now["/".join(parts)] = (about.st_mtime_ns, about.st_size)
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
    # A copy that was cut short is no run folder.
    draft = run.with_name(f"{run.name}.partial")
    for old in draft.rglob("*"):
        # Of an earlier try: the store may have replaced it since.
        if not old.is_dir() and old.relative_to(draft).as_posix() not in names:
            old.unlink()
    for name, goal in [(name, path_inside(draft, name)) for name in names]:
        goal.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(f"{place}/{name}", str(goal))
    draft.rename(run)


@click.command()
@click.argument("source")
@click.argument("goal")
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds between copies, until Ctrl-C; default: once.",
)
def main(source: str, goal: str, every: float | None) -> None:
    """Copies a run folder to an object store, or back."""
    try:
        if "://" in source:
            if "://" in goal or Path(goal).exists():
                raise click.UsageError(
                    f"{goal} must be a new folder, and exists or is an address. Name another one."
                )
            download(source, Path(goal))
            return
        seen = upload(Path(source), goal)
    except (TTSError, *_STORE_FAILS) as error:
        raise click.ClickException(str(error) or repr(error)) from error
    while every is not None:
        time.sleep(every)
        try:
            seen = upload(Path(source), goal, seen)
        except (TTSError, *_STORE_FAILS) as error:
            # A store may be out of reach for a while; the run goes on, and so does this.
            click.echo(f"Not copied, tried again in {every:g} s: {error or repr(error)}", err=True)


if __name__ == "__main__":
    main()
