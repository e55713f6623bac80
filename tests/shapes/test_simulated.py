import numpy as np
import pytest

from tts_verifier import shapes
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.shapes.simulated import SimulatedGenerator
from tts_verifier.testing import check_generator
from tts_verifier.types import Draw, Job, Look, Prompt


def draw_jobs(n, caption="two red stars"):
    return [Job(Prompt("0", caption), Draw(seed)) for seed in range(n)]


def test_it_fails_as_often_as_it_is_told():
    flawless = SimulatedGenerator(misalignment=0.0, artifact=0.0).generate(draw_jobs(12))
    assert all(shapes.judge(s.image, "two red stars").passed for s in flawless)
    wrong = SimulatedGenerator(misalignment=1.0, artifact=0.0).generate(draw_jobs(12))
    assert sum(shapes.judge(s.image, "two red stars").passed for s in wrong) <= 2


def test_an_image_depends_on_its_seed_alone():
    generator = SimulatedGenerator()
    many = generator.generate(draw_jobs(3))
    assert np.array_equal(many[2].image, generator.generate(draw_jobs(3)[2:])[0].image)
    assert not np.array_equal(many[2].image, many[1].image)


def test_it_passes_the_conformance_checks():
    check_generator(SimulatedGenerator())


@pytest.mark.parametrize("name", ["misalignment", "artifact"])
def test_a_share_outside_its_range_is_refused(name):
    with pytest.raises(InputError, match=rf"{name} must be a share in \[0, 1\], got 1.5"):
        SimulatedGenerator(**{name: 1.5})


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        SimulatedGenerator(batch_size=0)


def test_what_it_cannot_draw_is_refused():
    generator = SimulatedGenerator()
    with pytest.raises(UnsupportedError, match="'look'"):
        generator.generate([Job(Prompt("0", "a ring"), Look("x"))])
    with pytest.raises(InputError, match="'a cat'"):
        generator.generate(draw_jobs(1, "a cat"))
