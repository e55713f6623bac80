"""A value in memory or in a file of a run folder: plain data that pickles."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from tts_verifier.errors import RunError
from tts_verifier.types.paths import read_inside, stays_inside

StoredT = TypeVar("StoredT")
DecodedT_co = TypeVar("DecodedT_co", covariant=True)
_REMEDY: Final = "Move it away; the command that made the run generates it again."


class Decoder(Protocol[DecodedT_co]):
    """Turns a file's bytes into a value. Must pickle."""

    def decode(self, content: bytes) -> DecodedT_co:
        """Returns the value."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class InMemory(Generic[StoredT]):
    """A value that is in no file."""

    value: StoredT
    """The value."""

    def load(self) -> StoredT:
        """Returns the value."""
        return self.value


@dataclass(frozen=True, slots=True, eq=False)
class InFile(Generic[StoredT]):
    """A value in a file of a run folder. Every `load` reads and checks the file.

    Threads may share it.
    """

    folder: Path
    """The run folder."""
    path: str
    """Relative to the run folder."""
    sha256: str
    """SHA-256 of the file's bytes, as hex digits."""
    decoder: Decoder[StoredT]
    """Turns the file's bytes into the value."""

    def load(self) -> StoredT:
        """Reads the file.

        Raises:
            RunError: the file is missing, its SHA-256 is another, it holds no such value, or it
                is not inside the folder.
        """
        content = self.read()
        try:
            return self.decoder.decode(content)
        except Exception as error:
            # Damaged files make decoders raise whatever they like: SyntaxError, struct.error, ...
            raise RunError(
                f"{self.folder / self.path} is not what its row says: {error!r:.200}. {_REMEDY}"
            ) from error

    def read(self) -> bytes:
        """Returns the file's bytes, checked; raises RunError as `load` does."""
        file = self.folder / self.path
        try:
            # One read for both the digest and the decoder: the file cannot change in between.
            content = read_inside(self.folder, self.path)
        except OSError as error:
            raise RunError(
                f"{file} cannot be read: {error.strerror}. The command that made the run "
                "generates it again."
            ) from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise RunError(f"{file} was changed since the log was written. {_REMEDY}")
        return content


Stored: TypeAlias = InMemory[StoredT] | InFile[StoredT]
"""A value in memory or in a file; `load()` returns it."""


def path_of(stored: Stored[Any] | None) -> str:
    """Returns the path of a value's file relative to its run folder.

    Returns:
        "" if the value is in no file, or if the path leads out of the folder.
    """
    return stored.path if isinstance(stored, InFile) and stays_inside(stored.path) else ""
