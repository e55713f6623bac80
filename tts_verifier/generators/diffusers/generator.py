"""Any diffusers text-to-image pipeline as a generator.

Every candidate has a random generator of its own, seeded on the CPU. With a `batch_size`, every
batch is filled up to that size, and a proposal gives the same image whatever batch it is in, bit
for bit in float32 on one machine. Pipelines are called through their public arguments.
`schedule` runs a part of the steps, `noise` makes the initial noise, and `inpainting` repaints.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_verifier.errors import UnsupportedError
from tts_verifier.generators.diffusers import inpainting, noise
from tts_verifier.generators.diffusers.batch import (
    INTERRUPTED_ERROR,
    BatchOutput,
    BatchPlan,
    check_fractions,
    prompt_arguments,
    seeded_generators,
)
from tts_verifier.generators.diffusers.hooks import (
    counted_rows,
    counted_steps,
    exclusive,
    extrapolated_steps,
    inside_its_call,
    refuse_inside_its_call,
    steps_of_call,
    take_interrupt,
)
from tts_verifier.generators.diffusers.loading import (
    BUNDLED_CALL,
    as_pipeline,
    check_call,
    check_reserved,
    check_sizes,
)
from tts_verifier.generators.diffusers.prompt_cache import PromptCache
from tts_verifier.generators.diffusers.schedule import ScheduleSlice
from tts_verifier.generators.diffusers.traits import PipelineTraits, computing_device
from tts_verifier.loading.devices import check_device, check_dtype
from tts_verifier.types import (
    CachedDrafts,
    Compare,
    Continue,
    Cost,
    Drafts,
    Draw,
    Job,
    Look,
    LowBand,
    Near,
    Repaint,
    Rewrite,
    Rewritten,
    Sample,
    Setting,
    kind_of,
)

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class DiffusersGenerator:
    """Generates images with a diffusers pipeline.

    The class's `supports` lists what at least one pipeline can do. An instance's `supports` lists
    what its own pipeline can do, given its class, its scheduler and the arguments of the call.

    Safe to share between threads: calls and moves wait for each other, also with other generators
    of the same pipeline; a call from the pipeline's own callback raises UnsupportedError.
    `pipe._interrupt = True` stops the search: unfinished candidates get an `error`.

    Args:
        model: a loaded pipeline, which is used as it is; a folder or hub id for
            `DiffusionPipeline.from_pretrained`; or `"shapes"`, the bundled one.
        steps: of denoising, an argument of the pipeline's call, as are the next four; None = the
            pipeline's own default.
        guidance: its strength.
        height: in pixels.
        width: in pixels.
        negative_prompt: what not to show.
        batch_size: candidates at a time. Every batch is filled up to this size, so an image is the
            same bit for bit in float32. None = as many as fit; images then differ by rounding.
        dtype: "float32", "bfloat16", "float16" or "float64" for loading; None = bfloat16 on a
            GPU, float32 elsewhere.
        device: to load onto; None = the first GPU, else the CPU.
        call: further arguments of the pipeline's call, by name.
        inpaint: a pipeline that repaints with weights of its own, such as FLUX Fill: loaded, a
            folder or a hub id. None = diffusers' inpainting class over the same weights.
        lora: adapters for a model that is loaded here, see `loading.load_adapters`.

    Attributes:
        pipe: the pipeline.
        device: where it computes.
        settings: everything that decides an image besides prompt and seed, for the log.
        supports: the kinds of proposal and of noise that it serves.
        lacks: for each optional kind, why it cannot serve it; an empty text where it can.
        prompt_cache: the encodings of the prompts so far.

    Raises:
        InputError: the model is no text-to-image pipeline; a setting is out of range or is not
            an argument of the pipeline.
        CheckpointError: the model cannot be found, trusted or loaded.
    """

    supports = frozenset[type](
        {Draw, Continue, Repaint, Near, LowBand, Rewritten, Drafts, CachedDrafts}
    )
    home: str | None = None
    """For `interfaces.Movable`: a pipeline is loaded onto the device on which it computes."""

    def __init__(
        self,
        model: Any,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | None = None,
        batch_size: int | None = 8,
        dtype: str | None = None,
        device: str | None = None,
        call: Mapping[str, Any] | None = None,
        inpaint: Any = None,
        lora: str | Path | None = None,
    ) -> None:
        check_sizes(steps=steps, batch_size=batch_size, height=height, width=width)
        check_device(device)
        check_dtype(dtype)
        named = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": height,
            "width": width,
            "negative_prompt": negative_prompt,
        }
        bundled = BUNDLED_CALL if model == "shapes" else {}
        chosen = {key: value for key, value in named.items() if value is not None}
        # `model` becomes the pipeline below, so what the user wrote is noted for the log first.
        self._model_name = str(model) if isinstance(model, str | Path) else None
        self._lora = None if lora is None else str(lora)
        model = as_pipeline(model, dtype, device, lora)
        inpaint = as_pipeline(inpaint, dtype, device)
        self.traits = PipelineTraits(model, inpaint=inpaint, batch_size=batch_size)
        self._use_call({**bundled, **chosen, **(call or {})}, PromptCache(), stacklevel=3)

    def with_call(
        self, call: Mapping[str, Any], *, prompt_cache: PromptCache | None = None
    ) -> DiffusersGenerator:
        """Returns a generator that calls the same pipeline with other arguments.

        Both share what was found out about the pipeline, such as how many images fit. Changes that
        the user made to the pipeline since are taken into account.

        Args:
            call: the arguments of the pipeline's call, instead of this generator's.
            prompt_cache: None = share this generator's cache. Pass a new one when the pipeline's
                text encoders may have changed.

        Raises:
            InputError: the pipeline takes no such argument, or the search sets it for each
                candidate.
        """
        generator = copy.copy(self)
        with exclusive(self.traits.pipe):
            generator._use_call(call, prompt_cache or self.prompt_cache, stacklevel=3)
        return generator

    def _use_call(
        self, call: Mapping[str, Any], prompt_cache: PromptCache, *, stacklevel: int
    ) -> None:
        """Sets every attribute that depends on the arguments of the call."""
        self.pipe = self.traits.pipe
        check_call(self.pipe, call)
        check_reserved(call)
        # Some pipelines would read a text of a million tokens.
        check_sizes(max_sequence_length=call.get("max_sequence_length"))
        self.traits.warn_of_ignored_seeds(stacklevel + 1)
        self._call = dict(call)
        self.prompt_cache = prompt_cache
        self.device = computing_device(self.pipe)
        self._batch_size = self.traits.batch_size(self.device, call)
        self.settings: Mapping[str, Setting] = self.traits.settings(
            self._model_name, call, lora=self._lora
        )
        self.lacks: Mapping[type, str] = self.traits.problems(call)
        self.supports = frozenset(
            {Draw, Rewritten, *(k for k, why in self.lacks.items() if not why)}
        )
        # Rehearsed when it is first needed: a search of whole images from seeds alone needs none.
        self._rehearsed: noise.Rehearsal | None = None
        self._started = False
        self._interrupted = False

    @property
    def batch_size(self) -> int:
        """Candidates at a time: the size set by the user, or the current estimate of what fits."""
        return self._batch_size.limit

    @property
    def nbytes(self) -> int | None:
        """Bytes of its weights; None where they must not be moved, such as offloaded ones."""
        return self.traits.nbytes

    def to(self, device: str) -> None:
        """Moves the weights."""
        with exclusive(self.pipe, self.traits.inpaint):
            self.traits.to(device)
            self.device = computing_device(self.pipe)

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Serves every job, in batches of `batch_size`, which is halved when memory runs out.

        `until` and `renoise` are rounded to whole steps; a job takes at least one. An image
        with NaN in it, or one that the pipeline's safety checker blanked, becomes a sample
        with an `error`.

        Raises:
            UnsupportedError: the pipeline or its scheduler cannot do what a job asks.
            InputError: a job's mask, noise, parent or numbers do not fit.
        """
        with exclusive(self.pipe, self.traits.inpaint):
            refuse_inside_its_call(self.pipe)
            # Before the first batch, it was meant for an earlier call of the pipeline.
            self._interrupted = take_interrupt(self.pipe) and self._started
            self._started = True
            return self._generate(jobs)

    def _generate(self, jobs: Sequence[Job]) -> list[Sample]:
        places_by_plan: dict[BatchPlan, list[int]] = {}
        for place, job in enumerate(jobs):
            places_by_plan.setdefault(self._plan(job), []).append(place)
        samples: dict[int, Sample] = {}
        for plan, places in places_by_plan.items():
            planned = [jobs[place] for place in places]
            batches = self._batch_size.run(partial(self._generate_batch, plan), planned)
            samples |= zip(places, batches, strict=True)
        return [samples[place] for place in range(len(jobs))]

    def pipeline_arguments(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """Returns the arguments with which the pipeline generates whole images for jobs."""
        prompts = [job.text for job in jobs]
        return {"generator": seeded_generators(jobs), **prompt_arguments(prompts, self._call)}

    # -- planning ----------------------------------------------------------------------------

    def _plan(self, job: Job) -> BatchPlan:
        proposal = job.proposal
        check_fractions(proposal)
        if isinstance(proposal, Draw) and proposal.until >= 1:
            steps, interval = self.traits.steps_of_draw(self._call, proposal)
            return BatchPlan(0, None, proposal.noise is not None, steps=steps, interval=interval)
        if why := self.lacks.get(Repaint if isinstance(proposal, Repaint) else Continue):
            raise UnsupportedError(
                f"{self.settings['pipeline']} with {self.settings['scheduler']} cannot serve the "
                f"{kind_of(proposal)!r} proposal {str(proposal)[:160]}: {why}."
            )
        if isinstance(proposal, Look | Compare | Rewrite):
            raise UnsupportedError(f"{type(self.pipe).__name__} generates nothing for {proposal}.")
        if isinstance(proposal, Repaint):
            # One call has one strength and one size, so images that differ in them cannot share it.
            size = inpainting.repaint_source(job)[1].size
            return BatchPlan(strength=proposal.strength, size=size)
        return self._partial_plan(proposal, job)

    def _partial_plan(self, proposal: Draw | Continue, job: Job) -> BatchPlan:
        total = self._rehearsal.steps
        start, given_latents = 0, True
        if isinstance(proposal, Continue):
            reached = round(job.ancestors[0].progress * total)
            # Rounding may reach either end; at least one step is left to take.
            start = min(max(reached - round(proposal.renoise * total), 0), total - 1)
        else:
            given_latents = proposal.noise is not None
        stop = min(max(round(proposal.until * total), start + 1), total)
        return BatchPlan(start, stop, given_latents)

    @property
    def _rehearsal(self) -> noise.Rehearsal:
        import torch

        if self._rehearsed is None:
            # Without a generator of its own, a rehearsal would advance the global random state.
            seeded = {"generator": torch.Generator("cpu").manual_seed(0)}
            self._rehearsed = noise.rehearse(self.pipe, seeded | prompt_arguments([""], self._call))
        return self._rehearsed

    # -- one batch ---------------------------------------------------------------------------

    def _generate_batch(self, plan: BatchPlan, jobs: Sequence[Job]) -> list[Sample]:
        if self._interrupted:
            error = f"{INTERRUPTED_ERROR} before its first step."
            return [Sample(job, None, 0.0, error=error, interrupted=True) for job in jobs]
        missing = self._batch_size.limit - len(jobs) if self._batch_size.fixed else 0
        batch = [*jobs, *[jobs[-1]] * missing]
        # diffusers' own inpainting pipeline runs the modules of `self.pipe`; only a pipeline that
        # the user passed as `inpaint` has modules of its own to count.
        with (
            counted_rows((plan.strength and self.traits.inpaint) or self.pipe) as rows,
            extrapolated_steps(self.pipe, plan.interval, rows),
        ):
            output = self._repaint(batch) if plan.strength else self._denoise(batch, plan)
        # Copies that fill the batch are counted as rows, so the share of one row is exact.
        cost = Cost(
            network_evaluations=rows.denoiser // len(batch), vae_passes=rows.vae // len(batch)
        )
        samples = [output.sample(row, job, cost) for row, job in enumerate(jobs)]
        if not plan.strength:
            return samples
        cell = self.pipe.image_processor.config.vae_scale_factor
        return [inpainting.with_parents_pixels(sample, cell) for sample in samples]

    def _denoise(self, jobs: Sequence[Job], plan: BatchPlan) -> BatchOutput:
        """Takes the steps of the plan, from noise or from the parents' latents."""
        import torch

        call = self.pipeline_arguments(jobs)
        call |= {"num_inference_steps": plan.steps} if plan.steps else {}
        if plan.stop is None and not plan.given_latents:
            return self._run_pipeline(self.pipe, call)
        rehearsal, generators, latents = self._rehearsal, seeded_generators(jobs), None
        if plan.given_latents:
            pairs = zip(jobs, generators, strict=True)
            latents = torch.cat([rehearsal.starting_latents(j, plan.start, g) for j, g in pairs])
        if latents is not None and plan.stop is None:
            call["latents"] = rehearsal.latents_argument(latents, 0, rehearsal.steps)
            return self._run_pipeline(self.pipe, call)
        etas = [getattr(job.proposal, "eta", 0.0) for job in jobs]
        stop = plan.stop or rehearsal.steps
        steps = ScheduleSlice(plan.start, stop, rehearsal.levels(), etas, generators)
        return self._run_slice(call, steps, latents)

    def _repaint(self, jobs: Sequence[Job]) -> BatchOutput:
        sources = [inpainting.repaint_source(job) for job in jobs]
        if self.traits.inpaint is None and inpainting.repaints_by_blending(self.pipe):
            return self._blend(jobs, sources)
        # Made for every batch, which is quick: the user may have changed a component meanwhile.
        pipe = self.traits.inpaint or inpainting.inpainting_pipeline(self.pipe)
        parameters = inspect.signature(type(pipe).__call__).parameters
        call = self.pipeline_arguments(jobs)
        # A ControlNet's image is `image` in a text-to-image call, `control_image` beside another.
        control = {"control_image": call["image"]} if "image" in call else {}
        arguments = {**call, **control, **inpainting.inpainting_arguments(pipe, sources)}
        # The inpainting class may lack some arguments of the text-to-image call.
        return self._run_pipeline(pipe, {k: v for k, v in arguments.items() if k in parameters})

    def _blend(self, jobs: Sequence[Job], sources: Sequence[tuple[Repaint, Image]]) -> BatchOutput:
        import torch

        rehearsal, strength = self._rehearsal, sources[0][0].strength
        start = inpainting.first_repainting_step(rehearsal.steps, strength)
        cell = self.pipe.image_processor.config.vae_scale_factor
        parents = inpainting.encode_parents(
            self.pipe,
            [image for _, image in sources],
            cells=[inpainting.latent_cells(proposal.mask, cell) for proposal, _ in sources],
            noise=torch.cat([rehearsal.initial_noise(Draw(p.seed), ()) for p, _ in sources]),
            device=computing_device(self.pipe),
        )
        levels = rehearsal.levels()
        # At strength 1 nothing of the parent is left, and noise is scaled as the pipeline does.
        latents = parents.noise * rehearsal.scale if strength == 1 else parents.at(levels[start])
        steps = ScheduleSlice(start, rehearsal.steps, levels, restore=parents.restore)
        return self._run_slice(self.pipeline_arguments(jobs), steps, latents)

    def _run_slice(
        self, call: dict[str, Any], steps: ScheduleSlice, latents: torch.Tensor | None
    ) -> BatchOutput:
        if latents is not None:
            call["latents"] = self._rehearsal.latents_argument(latents, steps.start, steps.stop)
        with steps.applied_to(self.pipe):
            output = self._run_pipeline(self.pipe, call)
        taken = output.progress * (steps.stop - steps.start)
        output.latents = steps.final_latents
        output.progress = (steps.start + round(taken)) / steps.total_steps
        return output

    def _run_pipeline(self, pipe: Any, call: Mapping[str, Any]) -> BatchOutput:
        with self.prompt_cache.applied_to(pipe), counted_steps(pipe) as step, inside_its_call(pipe):
            output = pipe(output_type="np", **call)
        if pipe is self.pipe:
            self.traits.output_class = type(output)
        batch = BatchOutput.from_pipeline(output)
        if take_interrupt(pipe):
            batch.interrupt(step.taken, steps_of_call(pipe))
        # A pipeline that repaints is another object, and users may stop either.
        batch.interrupted |= take_interrupt(self.pipe)
        self._interrupted = batch.interrupted
        return batch
