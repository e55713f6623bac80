"""As many images at a time as fit."""

import numpy as np
import pytest
import torch
from tiny_pipelines import sd15

from tts_verifier.errors import RunWarning, is_out_of_memory
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.batch_size import BatchSize, MemoryUse
from tts_verifier.types import Draw, Job, Prompt


def doubling(most, sizes):
    """Returns a batch function that doubles numbers, on a GPU with memory for `most` at a time."""

    def generate(items):
        sizes.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * item for item in items]

    return generate


def test_running_out_of_memory_halves_the_batch_size_for_good():
    sizes, batch_size = [], BatchSize(8)
    with pytest.warns(RunWarning, match="from now on 4 images") as warned:
        assert batch_size.run(doubling(4, sizes), range(10)) == list(range(0, 20, 2))
    assert len(warned) == 1
    assert sizes == [8, 4, 4, 2]
    batch_size.run(doubling(4, sizes), range(4))
    assert batch_size.limit == 4


def test_an_item_that_does_not_fit_alone_is_an_error():
    with (
        pytest.warns(RunWarning, match="1 images"),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        BatchSize(2).run(doubling(0, []), range(2))


def test_other_errors_are_raised_at_once():
    def generate(items):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        BatchSize(2).run(generate, range(2))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def test_on_a_gpu_the_batch_grows_to_the_free_memory():
    before = MemoryUse(peak=0, allocated=100, free=0)
    after = [MemoryUse(peak, allocated=100, free=1000) for peak in (500, 900)]
    use = iter([before, after[0], before, after[1]])
    sizes, batch_size = [], BatchSize(None, "cuda", memory=lambda: next(use))
    batch_size.run(doubling(99, sizes), range(12))
    assert sizes == [4, 8]
    assert batch_size.limit == 8
    assert BatchSize(3).limit == 3
    assert BatchSize(None).limit == 8


def test_images_are_the_same_after_memory_ran_out(tmp_path, monkeypatch):
    pipe = sd15(tmp_path)
    jobs = [Job(Prompt("0", "a"), Draw(seed)) for seed in range(5)]
    wanted = DiffusersGenerator(pipe, steps=1, batch_size=2).generate(jobs)
    generator = DiffusersGenerator(pipe, steps=1, batch_size=None)
    decode = pipe.vae.decode

    def crowded(latents, **kwargs):
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(latents, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", crowded)
    with pytest.warns(RunWarning, match="Memory ran out"):
        samples = generator.generate(jobs)
    assert generator.batch_size == 2
    for one, other in zip(samples, wanted, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
