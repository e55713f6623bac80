"""Work on a batch that goes on when single items fail.

An item that fails becomes a value with its reason. A batch that raises is tried once more item
by item, with the same seeds: alone, an item has the memory to itself and no bad neighbour. A
validation error, and a reply or image that was received but is unusable, is not retried: the
same request would have the same answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from tts_verifier.errors import RunWarning, TTSError

A = TypeVar("A")
B = TypeVar("B")
_MAX_REASON: Final = 300


def with_retry(
    work: Callable[[Sequence[A]], list[B]], items: Sequence[A], failed: Callable[[A, str], B]
) -> list[B]:
    """Works on all items at once, or on each alone if that raises.

    Args:
        work: items -> a value each, in order.
        items: the batch.
        failed: an item and the reason why it failed, alone too -> its value.

    Raises:
        TTSError: a mistake that the user can fix, raised as it is.
    """
    try:
        return work(items)
    except TTSError:
        raise
    except Exception:
        return [value for item in items for value in _one_by_one(work, item, failed)]


def _one_by_one(
    work: Callable[[Sequence[A]], list[B]], item: A, failed: Callable[[A, str], B]
) -> list[B]:
    try:
        return work([item])
    except TTSError:
        raise
    except Exception as error:
        why = _reason(error)
        warnings.warn(f"A candidate failed ({why}); the run goes on.", RunWarning, stacklevel=4)
        return [failed(item, why)]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:_MAX_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
