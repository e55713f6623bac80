"""Reads pictures ahead of a verifier, in batches that fill it and fit into memory.

A call of `verify` gets as many pictures as the verifier's devices can work on together: 512 for
each GPU, 32 otherwise. It gets fewer where they are large, so that a batch has at most 2^28 pixels
for each GPU (0.8 GB of RGB). Threads read and decode the next batch while one is verified. So two
batches and a picture for each thread are in memory, and a kill costs the verdicts of one batch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from PIL import Image

from tts_verifier.scoring.sources.pairs import Pair

_ON_A_GPU: Final = 512
"""The engine decodes so many replies together, if it has so many."""
_ON_A_CPU: Final = 32
"""A CPU gains little from more."""
_PIXELS: Final = 2**28
_MOST_PASSED: Final = 4096
"""Pictures that need no verdict, because they are known or broken, in one batch."""
_READERS: Final = min(os.cpu_count() or 1, 16)

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A pair whose image was read."""

    pair: Pair
    """What was read."""
    key: str
    """A hash of the image's bytes, the prompt and the verifier's settings, in 16 hex digits."""
    image: Image.Image | None = None
    """RGB; None if it cannot be read, or need not be."""
    error: str = ""
    """Why it cannot be read."""


def batches(
    pairs: Iterable[Pair],
    read: Callable[[Pair], Picture],
    verifier: Any,
) -> Iterator[list[Picture]]:
    """Yields the pictures of pairs in order, in batches for a verifier.

    Args:
        pairs: taken one after the other, in another thread.
        read: reads and decodes a picture; called in several threads.
        verifier: what the batches are for.

    Raises:
        Exception: whatever `pairs` or `read` raise, in the place of the batch.
    """
    count, devices = images_at_once(verifier)
    return _one_ahead(_grouped(_read_ahead(pairs, read), count, _PIXELS * devices))


def with_content(pair: Pair) -> Pair:
    """Returns a pair that may be read in any thread or process, and after the next pair."""
    if pair.load is None:
        return pair
    if pair.error:
        return replace(pair, load=None)
    try:
        return replace(pair, load=partial(bytes, pair.load()))
    except Exception as error:
        # A damaged place of a shard, whatever its reader says of it.
        return replace(pair, load=None, error=f"{pair.image} cannot be read: {error}")


def images_at_once(verifier: Any) -> tuple[int, int]:
    """Returns how many images a call of `verify` is best given, and the number of devices."""
    members = getattr(verifier, "members", None)
    if members and isinstance(members, Mapping):
        # Of an ensemble, which asks one after the other about the same images.
        counts, numbers = zip(*map(images_at_once, members.values()), strict=True)
        return max(counts), max(numbers)
    devices = getattr(verifier, "devices", None) or (getattr(verifier, "device", None),)
    usual = _ON_A_GPU if any("cuda" in str(device) for device in devices) else _ON_A_CPU
    own = getattr(verifier, "batch_size", None)
    return max(usual, own if isinstance(own, int) else 0) * len(devices), len(devices)


def _read_ahead(pairs: Iterable[Pair], read: Callable[[Pair], Picture]) -> Iterator[Picture]:
    with ThreadPoolExecutor(_READERS, "read") as threads:
        pending: deque[Future[Picture]] = deque()
        for pair in pairs:
            pending.append(threads.submit(read, with_content(pair)))
            if len(pending) > _READERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _grouped(pictures: Iterable[Picture], count: int, pixels: int) -> Iterator[list[Picture]]:
    batch: list[Picture] = []
    images = size = 0
    for picture in pictures:
        if picture.image is not None:
            own = picture.image.width * picture.image.height
            if images and (images == count or size + own > pixels):
                yield batch
                batch, images, size = [], 0, 0
            images, size = images + 1, size + own
        batch.append(picture)
        if len(batch) - images >= _MOST_PASSED:
            yield batch
            batch, images, size = [], 0, 0
    if batch:
        yield batch


def _one_ahead(items: Iterator[Made]) -> Iterator[Made]:
    """Yields items; the next one is made in a thread while the caller works on one."""
    with ThreadPoolExecutor(1, "batch") as thread:
        future = thread.submit(next, items, None)
        while (item := future.result()) is not None:
            future = thread.submit(next, items, None)
            yield item
