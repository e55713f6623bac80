"""Encodes and writes files in threads, so that a GPU does not wait for PNG compression."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa

from tts_verifier.log.storage.codecs import Codec
from tts_verifier.log.storage.files import Folder, digest_of


class WrittenFile(NamedTuple):
    """What is known about a file once it is written."""

    sha256: str
    """SHA-256 of its bytes, as hex digits."""
    changed: int
    """When it was last changed, as `changed_at`."""


class PendingFiles:
    """Files on their way to the disk. Threads may share it.

    Args:
        folder: where to write.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(thread_name_prefix="write")
        # pyarrow imports pandas for its first array. Do that while the first batch is generated.
        self._pool.submit(pa.array, [""])
        self._lock = Lock()
        self._started: dict[str, tuple[Any, Future[WrittenFile]]] = {}
        """Path -> the last value for that path, and a future of its file."""
        # The lock guards the dictionary. The reference to the value keeps another object from
        # getting the same identity.

    def start(self, path: str, codec: Codec[Any], value: Any) -> Future[WrittenFile]:
        """Starts to write a value, unless the same object is already on its way to that path.

        Args:
            path: relative to the folder.
            codec: encodes the value.
            value: must not change until it is written.

        Returns:
            A future of the file; it raises RunError if writing failed.
        """
        with self._lock:
            # The same image object is started twice: before it is verified, and with its trial.
            before, earlier = self._started.get(path, (None, None))
            if earlier is not None and before is value:
                return earlier
            future = self._pool.submit(self._write, path, codec, value, earlier)
            self._started[path] = value, future
            return future

    def forget(self, paths: Iterable[str]) -> None:
        """Releases values whose files are written."""
        with self._lock:
            for path in paths:
                self._started.pop(path, None)

    def close(self) -> None:
        """Waits until all files are written, then ends the threads."""
        self._pool.shutdown()

    def _write(
        self, path: str, codec: Codec[Any], value: Any, earlier: Future[WrittenFile] | None
    ) -> WrittenFile:
        content = codec.encode(value)
        if earlier is not None:
            # Wait until the earlier write to this path ends, well or not: the later one must win.
            # The pool is first in, first out, so the earlier write is never behind this one.
            earlier.exception()
        changed = self._folder.write(path, content)
        return WrittenFile(digest_of(content), changed)
