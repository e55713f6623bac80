"""One wrapped pipeline in many threads: every call returns what it returns alone."""

from __future__ import annotations

import threading
import warnings

import pytest
from searches import InpaintReroll
from threads import at_once
from tiny_pipelines import CALL, same, sd3, sd15

from tts_verifier import wrap
from tts_verifier.errors import UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeVerifier

PROMPTS = ["a red circle", "a blue square", "two dogs", "a cat"]


def picture(verified, place, steps=None):
    """A call with a callback of its own, which notes the steps of this call alone."""
    prompt, seed = PROMPTS[place % 4], place // 4

    def note(pipe, step, timestep, tensors):
        steps.append(step)
        return tensors

    callback = {} if steps is None else {"callback_on_step_end": note}
    return verified(prompt, seed=seed, **callback, **CALL)


def stress(verified, threads, count):
    works = [[(thread * 3 + call) % 8 for call in range(count)] for thread in range(threads)]
    alone = {}
    for place in range(8):
        steps = []
        alone[place] = (picture(verified, place, steps), steps)

    def work(places):
        made = []
        for place in places:
            steps = []
            made.append((picture(verified, place, steps), steps))
        return made

    results = at_once([lambda w=w: work(w) for w in works])
    for places, made in zip(works, results, strict=True):
        assert isinstance(made, list), made
        for place, (output, steps) in zip(places, made, strict=True):
            wanted, wanted_steps = alone[place]
            assert same(output.images[0], wanted.images[0])
            assert [t.id for t in output.trials] == [t.id for t in wanted.trials]
            assert [t.scores for t in output.trials] == [t.scores for t in wanted.trials]
            assert [t.cost.network_evaluations for t in output.trials] == [
                t.cost.network_evaluations for t in wanted.trials
            ]
            assert steps == wanted_steps


def test_every_call_returns_its_own_pictures(verified):
    stress(verified, threads=6, count=2)


@pytest.mark.slow
def test_eight_threads_make_fifty_calls_each(verified):
    stress(verified, threads=8, count=50)


def test_wrappers_generators_and_pipelines_may_share_one(pipe, verified):
    from diffusers import StableDiffusion3Pipeline

    other = wrap(pipe, FakeVerifier(), strategy=BestOfN(2), batch_size=1)
    # Other objects over the same networks.
    sibling = wrap(StableDiffusion3Pipeline(**pipe.components), FakeVerifier(), strategy=BestOfN(2))
    sibling.set_progress_bar_config(disable=True)
    generator = DiffusersGenerator(pipe, call=CALL, batch_size=3)

    def ran():
        return run(["a cat"], generator, FakeVerifier(), BestOfN(3), seed=1).images["0000"]

    works = [
        lambda: picture(verified, 1).images[0],
        lambda: picture(other, 2).images[0],
        lambda: picture(sibling, 3).images[0],
        ran,
    ]
    alone = [work() for work in works]
    for place, image in enumerate(at_once(works * 2)):
        assert same(image, alone[place % len(works)]), image


def test_repaints_of_two_threads_keep_apart(tmp_path):
    pipe = sd15(tmp_path)
    call = {"num_inference_steps": 2, "guidance_scale": 4.0}
    verified = wrap(pipe, FakeVerifier(), strategy=InpaintReroll(n=4))
    alone = [verified("a dog", seed=seed, **call).images[0] for seed in (1, 2)]
    works = [lambda seed=seed: verified("a dog", seed=seed, **call).images[0] for seed in (1, 2)]
    for place, image in enumerate(at_once(works * 2)):
        assert same(image, alone[place % 2])


def test_a_callback_may_use_the_wrapper_but_not_generate(verified):
    def again(pipe, step, timestep, tensors):
        assert verified.device is not None
        verified.vae = verified.vae
        verified("a", seed=1, **CALL)

    with pytest.raises(UnsupportedError, match="cannot generate from within its own callback"):
        verified("a", seed=1, callback_on_step_end=again, **CALL)
    assert len(verified("a", seed=1, **CALL).images) == 1


def test_a_callback_of_a_generator_may_not_generate_either(pipe):
    generators = []

    def again(pipe, step, timestep, tensors):
        generators[0].generate([])

    generators.append(DiffusersGenerator(pipe, call={**CALL, "callback_on_step_end": again}))
    with pytest.raises(UnsupportedError, match="its own callback"):
        run(["a"], generators[0], FakeVerifier(), BestOfN(1))


def test_settings_wait_for_the_call_that_runs_and_flags_do_not(pipe, verified):
    inside, log = threading.Event(), []

    def wait(pipe, step, timestep, tensors):
        inside.set()
        flagged.wait(60)
        log.append("step")
        return tensors

    flagged = threading.Event()

    def setting():
        inside.wait(60)
        verified._anything = 1
        flagged.set()
        verified.scheduler = pipe.scheduler
        log.append("set")

    at_once([lambda: verified("a", seed=1, callback_on_step_end=wait, **CALL), setting])
    assert log == ["step", "step", "set"]
    del pipe._anything


def test_many_calls_change_no_filter_and_no_level(tmp_path):
    import logging

    pipe = sd15(tmp_path)
    verified = wrap(pipe, FakeVerifier(), strategy=InpaintReroll(n=3))
    level, filters = logging.getLogger("diffusers").level, list(warnings.filters)
    call = {"num_inference_steps": 2, "guidance_scale": 4.0}
    at_once([lambda s=s: verified("a dog", seed=s, **call) for s in range(4)])
    assert logging.getLogger("diffusers").level == level
    assert warnings.filters == filters


def test_a_shared_pipeline_can_still_be_copied(tmp_path):
    import copy

    pipe = sd3(tmp_path)
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(1))
    wanted = picture(verified, 0).images[0]
    assert same(
        picture(wrap(copy.deepcopy(pipe), FakeVerifier(), strategy=BestOfN(1)), 0).images[0], wanted
    )
