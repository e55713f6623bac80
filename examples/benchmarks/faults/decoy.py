"""A tree of files beside the folders that commands are given, which nobody may touch."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any


class Decoy:
    """Files beside the folders that commands are given; none of them may change.

    Args:
        root: where they are; written anew.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._write()

    def _write(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for name in ("letter.txt", "photo.png", "states/x.npz", "run/header.json", "images/0.png"):
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"private: {name}".encode())
        self._before = snapshot(self.root)

    def changed(self) -> list[str]:
        """Returns what differs from before, and puts it back."""
        after = snapshot(self.root)
        differ = {n for n in self._before | after if self._before.get(n) != after.get(n)}
        if differ:
            self._write()
        return sorted(differ)


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Returns type, time and digest of everything below a folder, by relative path."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            about = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            # A folder's time changes with a file that comes and goes.
            found[os.path.relpath(path, root)] = (
                about.st_mode,
                about.st_mtime_ns,
                hashlib.sha256(content).hexdigest(),
            )
    return found
