"""An interrupted pipeline ends the search; no half-denoised picture passes for a finished one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from searches import InpaintReroll
from tiny_pipelines import CALL, same, sd15

from tts_verifier import wrap
from tts_verifier.errors import RunWarning
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Draw, Job, Prompt

STEPS = {**CALL, "num_inference_steps": 4}


class Stop:
    """Interrupts at a step of the n-th batch."""

    def __init__(self, batch, step=1):
        self.batch, self.step, self.batches = batch, step, 0

    def __call__(self, pipe, step, timestep, tensors):
        self.batches += step == 0
        if self.batches == self.batch and step == self.step:
            pipe._interrupt = True
        return tensors


@pytest.fixture
def verified(pipe):
    return wrap(pipe, FakeVerifier(), strategy=BestOfN(6), batch_size=2)


def interrupted():
    return pytest.warns(RunWarning, match="was interrupted: the search ends with what is there")


def test_what_was_finished_before_is_chosen_from(verified):
    whole = verified("a", seed=1, **STEPS)
    with interrupted():
        out = verified("a", seed=1, callback_on_step_end=Stop(batch=2), **STEPS)
    assert out.interrupted
    assert out.verified == [True]
    assert len(out.trials) == 4
    assert [t.id for t in out.trials] != []
    assert len(out.ranking) == 2
    assert [t.finished for t in out.trials] == [True, True, False, False]
    best = max(out.trials[:2], key=lambda t: t.objective)
    assert same(out.images[0], best.image.load())
    for trial in out.trials[2:]:
        assert trial.error == "The pipeline was interrupted after 2 of 4 steps."
        assert trial.progress == 0.5
        assert trial.verdict is None
    assert not whole.interrupted
    assert len(whole.trials) == 6


def test_what_was_interrupted_at_once_comes_back_marked(verified, pipe):
    with (
        interrupted(),
        pytest.warns(RunWarning, match=r"follow \(unfinished: 1\): The pipeline was"),
    ):
        out = verified("a", seed=1, callback_on_step_end=Stop(batch=1), **STEPS)
    assert out.interrupted
    assert out.verified == [False]
    assert len(out.ranking) == 0
    assert out.images[0].size == (16, 16)
    assert not pipe._interrupt


def test_an_interruption_after_the_last_step_comes_too_late_for_its_batch(verified):
    with interrupted():
        out = verified("a", seed=1, callback_on_step_end=Stop(batch=1, step=3), **STEPS)
    assert [t.finished for t in out.trials] == [True, True]
    assert out.verified == [True]
    assert out.interrupted


def test_another_thread_may_interrupt_also_while_the_verifier_works(pipe):
    class Slow(FakeVerifier):
        def verify(self, *args, **kwargs):
            def press():
                verified._interrupt = True

            button = threading.Thread(target=press)
            button.start()
            button.join()
            return super().verify(*args, **kwargs)

    verified = wrap(pipe, Slow(), strategy=BestOfN(6), batch_size=2)
    with interrupted():
        out = verified("a", seed=1, **STEPS)
    assert [t.finished for t in out.trials] == [True, True, False, False]
    assert out.trials[2].error == "The pipeline was interrupted before its first step."
    assert out.trials[2].image is None


def test_a_flag_of_an_earlier_call_is_not_for_this_one(verified, pipe):
    pipe._interrupt = True
    assert len(verified("a", seed=1, **STEPS).trials) == 6


def test_prompts_and_groups_that_were_not_reached_have_no_image(verified):
    seeds = [torch.Generator().manual_seed(s) for s in (1, 2)]
    with interrupted(), pytest.warns(RunWarning, match="1 are None"):
        out = verified(["a", "b"], generator=seeds, callback_on_step_end=Stop(batch=2), **STEPS)
    assert out.images[0] is not None
    assert out.images[1] is None
    assert out.verified == [True, False]
    assert out.interrupted


def test_a_preview_that_was_interrupted_cannot_be_continued(pipe):
    generator = DiffusersGenerator(pipe, call=STEPS, batch_size=2)
    jobs = [Job(Prompt("0", "a"), Draw(seed, until=0.75)) for seed in (1, 2)]
    whole = generator.generate(jobs)
    assert [(s.progress, s.interrupted, s.error) for s in whole] == [(0.75, False, "")] * 2

    def press(module, args, output):
        pipe._interrupt = True

    # As another thread would, during the first step.
    hook = pipe.transformer.register_forward_hook(press)
    try:
        cut = generator.generate(jobs)
    finally:
        hook.remove()
    # The step under way when the button is pressed is still taken.
    error = "The pipeline was interrupted after 1 of 3 steps."
    assert [(s.progress, s.interrupted, s.error) for s in cut] == [(0.25, True, error)] * 2
    assert all(s.state is None for s in cut)


def test_repaints_can_be_interrupted(tmp_path):
    pipe = sd15(tmp_path)
    stop = Stop(batch=2, step=0)
    verified = wrap(pipe, FakeVerifier(), strategy=InpaintReroll(n=4))
    call = {"num_inference_steps": 6, "guidance_scale": 4.0}
    with interrupted():
        out = verified("a dog", seed=1, callback_on_step_end=stop, **call)
    assert out.verified == [True]
    assert not any(t.finished for t in out.trials if t.error)
    assert any(t.error.startswith("The pipeline was interrupted after 1 of") for t in out.trials)


def test_a_run_folder_is_continued_by_the_same_call(pipe, tmp_path):
    def generator(**extra):
        return DiffusersGenerator(pipe, call={**STEPS, **extra}, batch_size=2)

    whole = run(["a"], generator(), FakeVerifier(), BestOfN(6), seed=1)
    stopped = generator(callback_on_step_end=Stop(batch=2))
    # The callback is part of the settings; a button of a web page is not.
    stopped.settings = generator().settings
    with interrupted():
        result = run(["a"], stopped, FakeVerifier(), BestOfN(6), seed=1, folder=tmp_path / "run")
    assert result.interrupted
    assert len(result.trials) == 2
    assert result.images["0000"] is not None
    again = run(["a"], generator(), FakeVerifier(), BestOfN(6), seed=1, folder=tmp_path / "run")
    assert not again.interrupted
    assert [t.id for t in again.trials] == [t.id for t in whole.trials]
    assert same(again.images["0000"], whole.images["0000"])
    assert np.isfinite([t.objective for t in again.trials]).all()
