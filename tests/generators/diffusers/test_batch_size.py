"""As many pictures at a time as fit."""

import numpy as np
import pytest
import torch
from tiny_pipelines import sd15

from tts_verifier.errors import RunWarning
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.batch_size import Room, out_of_memory
from tts_verifier.types import Draw, Job, Prompt


def card(most, sizes):
    """Draws doubles of numbers on a card that holds `most` at a time."""

    def draw(items):
        sizes.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * item for item in items]

    return draw


def test_a_full_memory_halves_the_batch_once_and_for_all():
    sizes, room = [], Room(8)
    with pytest.warns(RunWarning, match="from now on 4 pictures") as told:
        assert room.work(card(4, sizes), range(10)) == list(range(0, 20, 2))
    assert len(told) == 1
    assert sizes == [8, 4, 4, 2]
    room.work(card(4, sizes), range(4))
    assert room.limit == 4


def test_what_does_not_fit_alone_is_an_error():
    with (
        pytest.warns(RunWarning, match="1 pictures"),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        Room(2).work(card(0, []), range(2))


def test_other_errors_are_raised_at_once():
    def draw(items):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Room(2).work(draw, range(2))
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def test_a_gpus_batch_grows_to_what_is_free():
    use = iter([(0, 100, 0), (500, 100, 1000), (0, 100, 0), (900, 100, 1000)])
    sizes, room = [], Room(None, "cuda", memory=lambda: next(use))
    room.work(card(99, sizes), range(12))
    assert sizes == [4, 8]
    assert room.limit == 8
    assert Room(3).limit == 3
    assert Room(None).limit == 8


def test_a_run_out_of_memory_draws_the_same_pictures(tmp_path, monkeypatch):
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
        found = generator.generate(jobs)
    assert generator.batch_size == 2
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
