"""Images with prompts, and what it means that two verdicts on one are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from threads import at_once
from tiny_imagedoctor import noise

from tts_verifier.types import Verdict
from tts_verifier.verifiers.imagedoctor import ImageDoctor

IMAGES = [noise(24 + 8 * i, 40, seed=i) for i in range(6)]
PROMPTS = ["a dog", "two red cats on a mat", "x", "a dog " * 9, "é", "a blue bird"]


def assert_same(
    one: Sequence[Verdict], other: Sequence[Verdict], *, map_error: float = 1e-5
) -> None:
    """A verdict depends on its batch by rounding alone, as for the batches of one call."""
    assert [v.text for v in one] == [v.text for v in other]
    for a, b in zip(one, other, strict=True):
        assert a.boxes == b.boxes
        np.testing.assert_allclose([*a.scores.values()], [*b.scores.values()], atol=1e-5)
        assert list(a.heatmaps) == list(b.heatmaps)
        for name in a.heatmaps:
            np.testing.assert_allclose(a.heatmaps[name], b.heatmaps[name], atol=map_error)


def calls_of_thread(thread: int, count: int) -> list[tuple[list[int], Any]]:
    """Calls of one to three images, of either detail."""
    return [
        ([(thread + call + k) % 6 for k in range(1 + (thread + call) % 3)],
         "score" if (thread + call) % 4 == 0 else "diagnose")
        for call in range(count)
    ]  # fmt: skip


def stress(verifier: ImageDoctor, *, threads: int, count: int) -> None:
    def call(places: list[int], detail: Any) -> list[Verdict]:
        return verifier.verify(
            [IMAGES[i] for i in places], [PROMPTS[i] for i in places], detail=detail
        )

    works = [calls_of_thread(thread, count) for thread in range(threads)]
    keys = {(tuple(places), detail) for calls in works for places, detail in calls}
    alone = {key: call(list(key[0]), key[1]) for key in keys}
    results = at_once([lambda w=w: [call(*arguments) for arguments in w] for w in works])
    for calls, result in zip(works, results, strict=True):
        assert isinstance(result, list), result
        for (places, detail), verdicts in zip(calls, result, strict=True):
            assert_same(verdicts, alone[tuple(places), detail])
