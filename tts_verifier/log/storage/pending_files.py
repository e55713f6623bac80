"""Encodes and writes files in threads, so that a GPU does not wait for PNG compression."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import pyarrow as pa

from tts_verifier.log.storage.codecs import Codec
from tts_verifier.log.storage.files import Folder, digest_of


class PendingFiles:
    """Files on their way to the disk. May be shared between threads.

    Args:
        folder: where to write.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(thread_name_prefix="write")
        # pyarrow imports pandas for its first array: better while the first batch is generated.
        self._pool.submit(pa.array, [""])
        self._lock = Lock()
        self._started: dict[str, tuple[Any, Future[str]]] = {}
        """By path, what was last written there and its digest to come."""

    def start(self, path: str, codec: Codec[Any], value: Any) -> Future[str]:
        """Starts to write a value, unless the same object is on its way to that path already.

        Args:
            path: relative to the folder.
            codec: encodes the value.
            value: must not change until it is written.

        Returns:
            The file's SHA-256 as hex digits, to come; raises RunError when writing failed.
        """
        with self._lock:
            before, digest = self._started.get(path, (None, None))
            if digest is not None and before is value:
                return digest
            future = self._pool.submit(self._write, path, codec, value, digest)
            self._started[path] = value, future
            return future

    def forget(self, paths: Iterable[str]) -> None:
        """Lets go of values whose files are written."""
        with self._lock:
            for path in paths:
                self._started.pop(path, None)

    def close(self) -> None:
        """Waits until all files are written, then ends the threads."""
        self._pool.shutdown()

    def _write(self, path: str, codec: Codec[Any], value: Any, earlier: Future[str] | None) -> str:
        content = codec.encode(value)
        if earlier is not None:
            # Wait for the earlier write to this path, whatever came of it: the later one counts.
            earlier.exception()
        self._folder.write(path, content)
        return digest_of(content)
