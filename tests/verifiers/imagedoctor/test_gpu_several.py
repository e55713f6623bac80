"""A verifier on two GPUs: the verdicts of one, from both, each within its own memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from same_verdicts import assert_same
from threads import at_once

from tts_verifier import shapes
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

GIB = 2**30
CAPTIONS = shapes.captions(8, seed=5) if torch.cuda.device_count() > 1 else []
PROMPTS = [caption for caption in CAPTIONS for _ in range(12)]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (96, 96, 3), np.uint8)) for _ in PROMPTS]


@pytest.fixture(scope="module")
def two() -> Iterator[ImageDoctor]:
    yield ImageDoctor.from_pretrained("shapes", device="cuda:0,1", dtype="float32")
    torch.cuda.empty_cache()


@pytest.mark.parametrize("detail", ["diagnose", "score"])
@pytest.mark.parametrize("options", [{}, {"heatmaps": True, "answer_template": True}])
def test_verdicts_are_those_of_one_gpu(
    images: list[Image.Image], options: Any, detail: Any
) -> None:
    one, two = (
        ImageDoctor.from_pretrained("shapes", device=device, dtype="float32", **options)
        for device in ("cuda:1", "cuda:all")
    )
    assert len(two.replicas) == torch.cuda.device_count()
    alone = one.verify(images, PROMPTS, detail=detail)
    for _ in range(2):  # captured, then replayed
        # Each GPU's library chooses its own algorithms for the heads' convolutions.
        assert_same(two.verify(images, PROMPTS, detail=detail), alone, map_error=1e-4)


def test_fp8_gives_the_verdicts_of_one_gpu(images: list[Image.Image]) -> None:
    one, two = (
        ImageDoctor.from_pretrained("shapes", device=device, precision="fp8", batch_size=8)
        for device in ("cuda:0", "cuda:0,1")
    )
    same = [
        a.text == b.text
        for a, b in zip(one.verify(images, PROMPTS), two.verify(images, PROMPTS), strict=True)
    ]
    assert np.mean(same) > 0.9


def test_many_threads_get_what_one_call_gives(two: ImageDoctor, images: list[Image.Image]) -> None:
    alone = two.verify(images, PROMPTS)
    found = at_once([lambda: two.verify(images[:20], PROMPTS[:20])] * 8)
    for verdicts in found:
        assert_same(verdicts, alone[:20], map_error=1e-4)


def test_a_neighbour_on_one_gpu_takes_rows_from_that_one_only(two: ImageDoctor) -> None:
    rows = [replica.engine.sequences for replica in two.replicas]
    for replica in two.replicas:
        replica.forget()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(1)[0]
    neighbour = torch.empty(free - GIB // 4, dtype=torch.uint8, device="cuda:1")
    fewer = [replica.engine.sequences for replica in two.replicas]
    assert fewer[0] == rows[0]
    assert fewer[1] < rows[1]
    del neighbour
    torch.cuda.empty_cache()


def test_memory_that_runs_out_on_one_gpu_is_an_error_that_says_where(
    two: ImageDoctor, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, real = two.verify(images, PROMPTS), Engine._prefill

    def prefill(engine: Engine, *arguments: Any) -> Any:
        if engine is two.replicas[1].engine:
            torch.empty(2**50, dtype=torch.uint8, device="cuda:1")
        return real(engine, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_prefill", prefill)
        patched.setattr(Engine, "_halve", lambda engine, sequences: setattr(engine, "_most", 1))
        with pytest.raises(torch.OutOfMemoryError, match="GPU 1") as caught:
            two.verify(images, PROMPTS)
    assert caught.value.__notes__[0].startswith("This happened on cuda:1. The verifier's other")
    two.replicas[1].engine._most = two.replicas[0].engine._most
    assert_same(two.verify(images, PROMPTS), alone)
