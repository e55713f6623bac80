"""Draws the pictures of the next step while those of this one are verified."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from tts_verifier.identity import seed_for
from tts_verifier.training.flow.parts import FlowTraining
from tts_verifier.training.flow.rewards import Judged
from tts_verifier.training.flow.sampling import Drawn, drawing_steps
from tts_verifier.training.grpo.measures import Seconds


class DrawnAhead:
    """The pictures of the next step, drawn and being verified. Not safe to share between threads.

    With `draw_ahead` they are drawn with the weights of a step before. A run that goes on has
    these weights and the captions in its state, and draws equal pictures.

    Args:
        training: the parts of the run.
        thread: that verifies.
        first: the step that a run begins or goes on with.
    """

    def __init__(self, training: FlowTraining, thread: ThreadPoolExecutor, first: int) -> None:
        self._training, self._thread = training, thread
        self._next: tuple[Drawn, list[int], Future[Judged]] | None = None
        self._resumed = first > 0

    def take(self, step: int, seconds: Seconds, *, last: bool) -> tuple[Drawn, list[int], Judged]:
        """Returns pictures, captions and verdicts of a step, and draws those of the next one."""
        training = self._training
        ahead = training.settings.draw_ahead
        if self._next is None:
            # The state of a run has the captions that were chosen for this step.
            chosen = training.pool.chosen if self._resumed and ahead else []
            with seconds.of("draw"):
                self._next = self._draw(step, chosen)
        drawn, chosen, verdicts = self._next
        self._next = None
        if ahead and not last:
            training.weights.follow("sampler", 1.0)
            with seconds.of("draw"):
                self._next = self._draw(step + 1, [])
        with seconds.of("verify"):
            judged = verdicts.result()
        return drawn, chosen, judged

    def forget(self) -> None:
        """Makes a run that goes on draw new pictures, with the weights of now."""
        self._training.weights.follow("sampler", 1.0)
        self._training.pool.chosen = []

    def _draw(self, step: int, chosen: list[int]) -> tuple[Drawn, list[int], Future[Judged]]:
        training, settings = self._training, self._training.settings
        chosen = list(chosen) or training.pool.choose(step)
        accelerator = training.accelerator
        share = settings.share_of(accelerator.process_index, accelerator.num_processes)
        captions = [training.pool.captions[chosen[i]] for i in share]
        rng = np.random.default_rng(seed_for(training.seed, "window", step, "flow"))
        noise = drawing_steps(settings.steps_drawn, settings.noise, settings.window, rng)
        seed = seed_for(training.seed, f"process {accelerator.process_index}", step, "flow")
        drawn = training.sampler.draw(captions, settings.group, seed, noise)
        prompts = [caption for caption in captions for _ in range(settings.group)]
        return drawn, chosen, self._thread.submit(training.rewards, drawn.images, prompts)
