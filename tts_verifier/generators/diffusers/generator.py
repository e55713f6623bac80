"""Any diffusers text-to-image pipeline as a generator.

Every candidate has a random generator of its own, seeded on the CPU, and every batch is
filled up to one fixed size, so that a proposal gives the same picture whatever batch it lands
in: bit for bit in float32 on one machine. Pipelines are called through their public
arguments; part of a drawing is made by `schedule`, noise by `noise`, repairs by `repaint`.
"""

from __future__ import annotations

import inspect
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_verifier.errors import InputError, RunWarning, UnsupportedError
from tts_verifier.generators.diffusers import blend, inpainting, noise, placement, schedule
from tts_verifier.generators.diffusers.batch import (
    PICTURES,
    Drawn,
    Plan,
    asked,
    check_shares,
    generators,
)
from tts_verifier.generators.diffusers.batch_size import Room
from tts_verifier.generators.diffusers.count_calls import counted
from tts_verifier.generators.diffusers.loading import (
    BUNDLED_CALL,
    check_call,
    check_reserved,
    check_pipeline,
    load_pipeline,
)
from tts_verifier.generators.diffusers.prompt_cache import Texts
from tts_verifier.identity import described
from tts_verifier.masks import paste
from tts_verifier.types import (
    Continue,
    Cost,
    Draw,
    Job,
    Look,
    LowBand,
    Near,
    Repaint,
    Sample,
    Setting,
    kind_of,
)

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class DiffusersGenerator:
    """Draws with a diffusers pipeline.

    The class says what it can do with some pipeline; `supports` of an instance is what it
    can do with its own, by the pipeline's class and scheduler, and `lacks` says why not. `room`
    and `texts` are what it found out, how many fit and what texts are encoded as; generators of
    one pipeline may share them. `output_kind`: of what the pipeline returned, None before it drew.

    Args:
        model: a loaded pipeline, which is used as it is; a folder or hub id for
            `DiffusionPipeline.from_pretrained`; or `"shapes"`, the bundled one.
        steps, guidance, height, width, negative_prompt: of the call; None = the pipeline's
            own default.
        batch_size: candidates drawn at a time, every batch filled up to it, so that pictures
            are the same bit for bit in float32. None = as many as fit, no batch filled;
            pictures are then the same within the rounding of the dtype.
        dtype: "float32", "bfloat16" or "float16" for loading; None = bfloat16 on a GPU,
            float32 elsewhere.
        device: to load onto; None = the first GPU, else the CPU.
        call: further arguments of the pipeline's call, by name.
        inpaint: a pipeline that repaints, such as FLUX Fill with weights of its own, loaded,
            or a folder or hub id; None = diffusers' inpainting sibling over the same weights,
            where there is one.

    Raises:
        InputError: it is no text-to-image pipeline; a setting is out of range or not an
            argument of the pipeline.
        CheckpointError: the model cannot be found or loaded.
    """

    supports: frozenset[type] = frozenset({Draw, Continue, Repaint, Near, LowBand})

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
    ) -> None:
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value!r}.")
        given = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": height,
            "width": width,
            "negative_prompt": negative_prompt,
        }
        base = BUNDLED_CALL if model == "shapes" else {}
        chosen = {key: value for key, value in given.items() if value is not None}
        self._call: dict[str, Any] = {**base, **chosen, **(call or {})}
        self.pipe = load_pipeline(model, dtype, device) if isinstance(model, str | Path) else model
        check_pipeline(self.pipe)
        check_call(self.pipe, self._call)
        check_reserved(self._call)
        named = isinstance(inpaint, str | Path)
        self._inpaint = load_pipeline(inpaint, dtype, device) if named else inpaint
        self.output_kind: Any = None
        # Looked up once: diffusers walks through all modules for it.
        self.device = placement.device_of(self.pipe)
        self.room = Room(batch_size, self.device)
        self.texts = Texts()
        self.settings: Mapping[str, Setting] = self._settings(model, batch_size)
        unheard = noise.problem(self.pipe)
        self.lacks: Mapping[type, str] = {
            Near: unheard,
            LowBand: unheard,
            Continue: unheard or schedule.problem(self.pipe, self._call),
            Repaint: inpainting.problem(self.pipe)
            if inpaint is None
            else inpainting.lacking(self._inpaint),
        }
        if getattr(self.pipe, "scheduler", None) and schedule.unseeded(self.pipe.scheduler):
            warnings.warn(
                f"{self.settings['scheduler']} with stochastic_sampling ignores the seeds of the "
                "candidates: a seed's picture is never the same again.",
                RunWarning,
                stacklevel=2,
            )
        self.supports = frozenset({Draw, *(kind for kind, why in self.lacks.items() if not why)})

    @property
    def batch_size(self) -> int:
        """Candidates drawn at a time, as far as is known by now."""
        return self.room.limit

    @property
    def nbytes(self) -> int | None:
        """Bytes of its weights; None where they must not be moved, such as offloaded ones."""
        return placement.size(*self._pipes)

    @property
    def _pipes(self) -> list[Any]:
        return [self.pipe] if self._inpaint is None else [self.pipe, self._inpaint]

    def to(self, device: str) -> None:
        """Moves the weights."""
        placement.move(device, *self._pipes)
        self.device = placement.device_of(self.pipe)

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Draws every job in batches of `batch_size`, which is halved when memory runs out.

        `until` and `renoise` are rounded to whole steps; a job takes at least one. A picture
        with NaN in it, or one that the pipeline's safety checker blanked, becomes a sample
        with an `error`.

        Raises:
            UnsupportedError: the pipeline or its scheduler cannot do what a job asks.
            InputError: a job's mask, noise, parent or numbers do not fit.
        """
        alike: dict[Any, list[int]] = {}
        for place, job in enumerate(jobs):
            alike.setdefault(self._plan(job), []).append(place)
        samples: dict[int, Sample] = {}
        for plan, places in alike.items():
            drawn = self.room.work(partial(self._draw, plan), [jobs[place] for place in places])
            samples |= zip(places, drawn, strict=True)
        return [samples[place] for place in range(len(jobs))]

    def _plan(self, job: Job) -> Plan:
        p = job.proposal
        check_shares(p)
        if isinstance(p, Draw) and p.until >= 1:
            return Plan(given=p.noise is not None)
        if why := self.lacks.get(Repaint if isinstance(p, Repaint) else Continue):
            raise UnsupportedError(
                f"{self.settings['pipeline']} with {self.settings['scheduler']} cannot serve the "
                f"{kind_of(p)!r} proposal {str(p)[:160]}: {why}."
            )
        if isinstance(p, Look):
            raise UnsupportedError(f"{type(self.pipe).__name__} draws nothing for a look.")
        if isinstance(p, Repaint):
            return Plan(strength=p.strength, size=inpainting.source(job)[1].size)
        whole = self._rehearsal.steps
        if isinstance(p, Draw):
            return Plan(0, min(max(round(p.until * whole), 1), whole), given=p.noise is not None)
        back = round(job.ancestors[0].progress * whole) - round(p.renoise * whole)
        start = min(max(back, 0), whole - 1)
        return Plan(start, min(max(round(p.until * whole), start + 1), whole), given=True)

    @cached_property
    def _rehearsal(self) -> noise.Rehearsal:
        import torch

        # Without one of its own it would advance the global random state.
        own = {"generator": torch.Generator("cpu").manual_seed(0)}
        return noise.rehearse(self.pipe, own | asked([""], self._call))

    def _draw(self, plan: Plan, jobs: Sequence[Job]) -> list[Sample]:
        filled = [*jobs, *[jobs[-1]] * (self.room.limit - len(jobs) if self.room.fixed else 0)]
        began = time.perf_counter()
        with counted((plan.strength and self._inpaint) or self.pipe) as rows:
            drawn = self._repaint(filled) if plan.strength else self._denoise(filled, plan)
        cost = Cost(
            network_evaluations=rows["denoiser"] // len(filled),
            vae_passes=rows["vae"] // len(filled),
            draw_seconds=(time.perf_counter() - began) / len(jobs),
        )
        samples = [drawn.sample(row, job, cost) for row, job in enumerate(jobs)]
        return [_pasted(sample) for sample in samples] if plan.strength else samples

    def _denoise(self, jobs: Sequence[Job], plan: Plan) -> Drawn:
        """Takes the steps of the plan from noise or from the parents' latents."""
        import torch

        call = self._asked(jobs)
        if plan.stop is None and not plan.given:
            return self._called(self.pipe, call)
        ready, seeds, latents = self._rehearsal, generators(jobs), None
        if plan.given:
            rows = [ready.latents(j, plan.start, g) for j, g in zip(jobs, seeds, strict=True)]
            latents = torch.cat(rows)
        if latents is not None and plan.stop is None:
            call["latents"] = ready.handed_over(latents, 0, ready.steps)
            return self._called(self.pipe, call)
        etas = [getattr(job.proposal, "eta", 0.0) for job in jobs]
        span = schedule.Span(plan.start, plan.stop or ready.steps, ready.levels(), etas, seeds)
        return self._in_span(call, span, latents)

    def _repaint(self, jobs: Sequence[Job]) -> Drawn:
        sources = [inpainting.source(job) for job in jobs]
        if self._inpaint is None and blend.serves(self.pipe):
            return self._blend(jobs, sources)
        pipe = self._inpaint or inpainting.sibling(self.pipe)
        known = inspect.signature(type(pipe).__call__).parameters
        asked = self._asked(jobs)
        # What a ControlNet sees has another name where there is a picture besides.
        control = {"control_image": asked["image"]} if "image" in asked else {}
        told = {**asked, **control, **inpainting.arguments(pipe, sources)}
        return self._called(pipe, {k: v for k, v in told.items() if k in known})

    def _blend(self, jobs: Sequence[Job], sources: Sequence[tuple[Repaint, Image]]) -> Drawn:
        import torch

        ready, strength = self._rehearsal, sources[0][0].strength
        start = blend.first_step(ready.steps, strength)
        cell = self.pipe.image_processor.config.vae_scale_factor
        kept = blend.kept(
            self.pipe,
            [image for _, image in sources],
            cells=[inpainting.cells(proposal.mask, cell) for proposal, _ in sources],
            noise=torch.cat([ready.noise(Draw(p.seed), ()) for p, _ in sources]),
        )
        table = ready.levels()
        rows = kept.noise * ready.scale if strength == 1 else kept.at(table[start])
        span = schedule.Span(start, ready.steps, table, kept=kept.put_back)
        return self._in_span(self._asked(jobs), span, rows)

    def _in_span(
        self, call: dict[str, Any], span: schedule.Span, latents: torch.Tensor | None
    ) -> Drawn:
        if latents is not None:
            call["latents"] = self._rehearsal.handed_over(latents, span.start, span.stop)
        with span.shown_to(self.pipe):
            drawn = self._called(self.pipe, call)
        drawn.latents, drawn.progress = span.latents, span.stop / span.whole
        return drawn

    def _called(self, pipe: Any, call: Mapping[str, Any]) -> Drawn:
        with self.texts.encoded_once(pipe):
            out = pipe(output_type="np", **call)
        if pipe is self.pipe:
            self.output_kind = type(out)
        return Drawn.of(out)

    def output(self, images: Any) -> Any:
        """Returns pictures as the pipeline's own output, or diffusers' usual one before it drew.

        The field that pictures are in has another name in some families; `images` is always
        there.
        """
        from diffusers import ImagePipelineOutput

        kind: Any = self.output_kind or ImagePipelineOutput
        # A video is a list of frames, or has an axis of them.
        videos = [[image] for image in images] if isinstance(images, list) else images[:, None]
        shown = dict.fromkeys(PICTURES, images) | {"frames": videos}
        out = kind(**{field.name: shown.get(field.name) for field in fields(kind)})
        out.images = images
        return out

    def _asked(self, jobs: Sequence[Job]) -> dict[str, Any]:
        prompts = [job.prompt.text for job in jobs]
        return {"generator": generators(jobs), **asked(prompts, self._call)}

    def _settings(self, model: Any, batch_size: int | None) -> dict[str, Setting]:
        pipe, named = self.pipe, isinstance(model, str | Path)
        scheduler = getattr(pipe, "scheduler", None)
        flat = {k: v for k, v in self._call.items() if isinstance(v, str | int | float | None)}
        rest = {k: v for k, v in self._call.items() if k not in flat}
        return {
            "model": str(model) if named else str(getattr(pipe.config, "_name_or_path", "")),
            "pipeline": type(pipe).__name__,
            "scheduler": type(scheduler).__name__,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "batch_size": batch_size,
            **flat,
            **({} if self._inpaint is None else {"inpaint": type(self._inpaint).__name__}),
            **({"call": json.dumps(rest, sort_keys=True, default=described)} if rest else {}),
        }


def _pasted(sample: Sample) -> Sample:
    """Puts the parent's pixels back outside the mask, exactly."""
    if sample.image is None:
        return sample
    proposal, old = inpainting.source(sample.job)
    return replace(sample, image=paste(old, sample.image, proposal.mask))
