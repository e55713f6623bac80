"""Processes a batch, and goes on when single items fail.

When a batch raises, each of its items is tried once more alone, with the same seed: that rules
out memory pressure and a bad neighbour in the batch. An item that fails alone too becomes a value
that holds the reason. Validation errors are not retried, nor are unusable replies or images: the
same request would get the same answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from tts_verifier.errors import RunWarning, TTSError

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")
_MAX_REASON: Final = 300
"""Characters of an error's message that the log stores."""


def with_retry(
    process: Callable[[Sequence[ItemT]], list[AnswerT]],
    items: Sequence[ItemT],
    failed: Callable[[ItemT, str], AnswerT],
) -> list[AnswerT]:
    """Processes all items at once, or each alone if that raises.

    Args:
        process: returns a value for each item, in order.
        items: the batch.
        failed: returns the value of an item that failed alone too, given the item and the reason.

    Raises:
        TTSError: the user made a mistake; raised unchanged.
    """
    try:
        return process(items)
    except TTSError:
        raise
    # Not BaseException: Ctrl-C ends the run.
    except Exception:
        return [value for item in items for value in _alone(process, item, failed)]


def _alone(
    process: Callable[[Sequence[ItemT]], list[AnswerT]],
    item: ItemT,
    failed: Callable[[ItemT, str], AnswerT],
) -> list[AnswerT]:
    try:
        return process([item])
    except TTSError:
        raise
    except Exception as error:
        why = _reason(error)
        warnings.warn(f"A candidate failed ({why}); the run goes on.", RunWarning, stacklevel=4)
        return [failed(item, why)]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:_MAX_REASON]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
