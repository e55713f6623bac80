"""Every exception of the package, the text of messages, and whether an error is lack of memory.

TTSError                a problem that the user can fix; commands print it without a traceback
├── InputError          an image, a prompt or an argument that cannot be used as given
├── RecipeError         a recipe with a mistake
├── RunError            a run folder that cannot be written, read or continued
├── UnsupportedError    a request that this generator, verifier or scheduler cannot serve
├── ServerError         a server that does not answer, or that refuses or breaks off an answer
└── CheckpointError     weights, a config or a tokenizer that are missing or do not fit

A message states the rule, the value found and the remedy. `RunWarning` is the only warning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from traceback import clear_frames
from typing import Final

# Control characters but line feed and tab, which the package prints itself; marks that turn the
# direction of text; halves of letters, which no terminal can show.
_OBEYED: Final = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


class TTSError(Exception):
    """A problem that the user can fix."""


class InputError(TTSError, ValueError):
    """An image, a prompt or an argument that cannot be used as given.

    Args:
        message: the rule, the value found and the remedy.
        argument: the name of the constructor's argument that is at fault. With it a recipe's
            error can name the line that sets this argument; None = no single argument.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class RecipeError(TTSError, ValueError):
    """A recipe with a mistake, or a name that no recipe can use."""


class RunError(TTSError):
    """A run folder that cannot be written, read or continued."""


class UnsupportedError(TTSError):
    """A request that this generator, verifier or scheduler cannot serve."""


class ServerError(TTSError):
    """A server that does not answer, or that refuses or breaks off an answer.

    Args:
        message: the rule, the value found and the remedy.
        transient: the same request may be answered later, since the server is away or full.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class CheckpointError(TTSError):
    """Weights, a config or a tokenizer that are missing or do not fit together."""


class RunWarning(UserWarning):
    """A problem that does not end a run: a file set aside, a failed candidate, a slow judge."""


def as_exception(error: BaseException) -> Exception:
    """Returns an error for another thread, which keeps nothing of the failed call alive.

    That call's tensors take memory, which the next one may need. A RuntimeError stands for what
    would end the other thread: an error whose text cannot be read, or that is no Exception, such as
    a panic of a library in Rust.
    """
    clear_frames(error.__traceback__)
    name = type(error).__name__
    try:
        text = str(error)
    except Exception as other:
        return RuntimeError(f"{name}, whose text cannot be read: {type(other).__name__}")
    return error if isinstance(error, Exception) else RuntimeError(f"{name}: {text}")


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether memory ran out, on the host or a device."""
    # torch's own class is a RuntimeError, and torch need not be there.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    text = str(error)
    # The texts are those of GPUs other than CUDA's, and of the CPU's allocator.
    return named or "out of memory" in text or "can't allocate memory" in text


def readable_name(text: str | os.PathLike[str]) -> str:
    r"""Returns a file's name as text that every file and terminal can hold.

    A byte that is no UTF-8 becomes an escape such as ``\xff``; other names stay as they are.
    """
    name = os.fspath(text)
    if name.isascii():
        return name
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Surrogates that stand for no byte: they come from JSON, not from a file's name.
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def suggestion(name: str, available: Iterable[str]) -> str:
    """Returns "Did you mean …? Available: …" for a name that is not available."""
    available = list(available)
    near = get_close_matches(name, available, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}Available: {', '.join(sorted(available)) or 'none'}."


def printable(text: object) -> str:
    r"""Returns text that a terminal shows and does not obey: an escape becomes `\x1b`.

    Ids, prompts and errors in a run folder from somebody else may hold codes that clear the
    screen, rename the window or write over earlier lines. Lines of JSON stay JSON.
    """
    return _OBEYED.sub(lambda match: _escape(match.group()), str(text))


def _escape(letter: str) -> str:
    # JSON escapes the letters before DEL itself, and for the others it knows this form alone.
    return ascii(letter)[1:-1] if letter < "\x7f" else f"\\u{ord(letter):04x}"
