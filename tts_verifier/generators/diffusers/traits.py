"""The properties of a pipeline that hold for all calls: abilities, device, size, output class."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any, Final

import numpy as np

from tts_verifier.errors import InputError, RunWarning, UnsupportedError
from tts_verifier.generators.diffusers import inpainting, schedule
from tts_verifier.generators.diffusers.batch import IMAGE_FIELDS
from tts_verifier.generators.diffusers.batch_size import BatchSize
from tts_verifier.generators.diffusers.hooks import denoisers_of, evaluated_steps
from tts_verifier.generators.diffusers.loading import check_image_size, check_pipeline
from tts_verifier.generators.diffusers.noise import latents_problem
from tts_verifier.loading.memory import release, weight_bytes
from tts_verifier.types import CachedDrafts, Continue, Drafts, Draw, LowBand, Near, Repaint, Setting

_STEPS_ARGUMENT: Final = "num_inference_steps"


class PipelineTraits:
    """The properties of a pipeline, found once and shared by all generators that call it.

    Properties that a user may change between calls, such as the scheduler or the device, are looked
    up each time. Not safe to share between threads; a generator uses it with its pipeline's lock.

    Args:
        pipe: the text-to-image pipeline.
        inpaint: a pipeline that repaints, or None.
        batch_size: candidates at a time; None = find it out.

    Attributes:
        output_class: the class of what the pipeline returned; None before it was called.

    Raises:
        InputError: `pipe` is no text-to-image pipeline.
    """

    def __init__(self, pipe: Any, *, inpaint: Any = None, batch_size: int | None = None) -> None:
        check_pipeline(pipe)
        self.pipe = pipe
        self.inpaint = inpaint
        self.given_batch_size = batch_size
        self.output_class: Any = None
        self._batch_sizes: dict[tuple[object, ...], BatchSize] = {}
        self._warned_of: Any = None

    def problems(self, call: Mapping[str, Any]) -> Mapping[type, str]:
        """Returns why the pipeline cannot serve a kind of proposal; empty texts where it can.

        Args:
            call: the arguments of the pipeline's call.
        """
        return {
            Near: self._latents_problem,
            LowBand: self._latents_problem,
            Continue: self._latents_problem or schedule.resume_problem(self.pipe, call),
            Repaint: self._repaint_problem(call),
            Drafts: self._drafts_problem(call),
            CachedDrafts: self._cached_drafts_problem(call),
        }

    def steps_of_draw(self, call: Mapping[str, Any], draw: Draw) -> tuple[int, int]:
        """Returns the steps of a draw, 0 = the call's, and every how many it evaluates the network.

        Args:
            call: the arguments of the pipeline's call.
            draw: a cached draft evaluates it in the share `pace` of the steps, or in two.

        Raises:
            UnsupportedError: it is a draft, and the pipeline cannot draw drafts.
        """
        if draw.pace == 1:
            return 0, 1
        problem = self._cached_drafts_problem if draw.cached else self._drafts_problem
        if why := problem(call):
            raise UnsupportedError(f"{type(self.pipe).__name__} cannot draw drafts: {why}.")
        steps: int = self._steps(call)
        most = max(round(steps * draw.pace), 1)
        if not draw.cached:
            return most, 1
        fits = (k for k in range(1, steps + 2) if evaluated_steps(steps, k) <= max(most, 2))
        return 0, next(fits)

    def _drafts_problem(self, call: Mapping[str, Any]) -> str:
        lists = [name for name in ("timesteps", "sigmas") if call.get(name) is not None]
        if lists:
            return f"its call lists {lists[0]}, so the number of steps is fixed"
        return "" if isinstance(self._steps(call), int) else f"its call has no {_STEPS_ARGUMENT}"

    def _cached_drafts_problem(self, call: Mapping[str, Any]) -> str:
        networks = denoisers_of(self.pipe)
        if not networks or getattr(self.pipe, "scheduler", None) is None:
            return "it has no `scheduler`, or no `transformer` or `unet`"
        if any(getattr(n, "_compiled_call_impl", None) is not None for n in networks):
            # Its graph holds the whole network, and would be compiled anew for every batch.
            return "its denoiser was compiled in place; compile its blocks, or use torch.compile"
        return self._drafts_problem(call)

    def _steps(self, call: Mapping[str, Any]) -> Any:
        parameter = inspect.signature(type(self.pipe).__call__).parameters.get(_STEPS_ARGUMENT)
        return call.get(_STEPS_ARGUMENT) or (parameter and parameter.default)

    def settings(
        self, model_name: str | None, call: Mapping[str, Any], *, lora: str | None
    ) -> dict[str, Setting]:
        """Returns everything that decides an image besides prompt and seed, for the log.

        Args:
            model_name: None = that of the pipeline's configuration.
            call: the arguments of the pipeline's call.
            lora: where the adapters that were loaded are; None = there are none.
        """
        pipe, inpaint = self.pipe, self.inpaint
        flat = {k: v for k, v in call.items() if isinstance(v, str | int | float | None)}
        rest = {k: v for k, v in call.items() if k not in flat}
        settings: dict[str, Setting] = {
            "model": model_name or str(getattr(pipe.config, "_name_or_path", "")),
            "pipeline": type(pipe).__name__,
            "scheduler": type(getattr(pipe, "scheduler", None)).__name__,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "batch_size": self.given_batch_size,
            **flat,
        }
        if lora is not None:
            settings["lora"] = lora
        if inpaint is not None:
            settings["inpaint"] = type(inpaint).__name__
        if rest:
            settings["call"] = json.dumps(rest, sort_keys=True, default=_described)
        return settings

    @cached_property
    def _latents_problem(self) -> str:
        return latents_problem(self.pipe)

    @cached_property
    def _inpainting_problem(self) -> str:
        return inpainting.inpainting_problem(self.pipe)

    def _repaint_problem(self, call: Mapping[str, Any]) -> str:
        if self.inpaint is not None:
            try:
                check_image_size(self.inpaint, call)
            except InputError as error:
                return str(error)
            return inpainting.missing_arguments(type(self.inpaint))
        if inpainting.repaints_by_blending(self.pipe):
            # Not cached: it depends on the scheduler, which the user may swap between calls.
            return schedule.resume_problem(self.pipe, {})
        return self._inpainting_problem

    def warn_of_ignored_seeds(self, stacklevel: int) -> None:
        """Warns, once for each scheduler, that it ignores the seeds of the candidates."""
        scheduler = getattr(self.pipe, "scheduler", None)
        if not scheduler or scheduler is self._warned_of or not schedule.ignores_seeds(scheduler):
            return
        self._warned_of = scheduler
        warnings.warn(
            f"{type(scheduler).__name__} with stochastic_sampling ignores the seeds of the "
            "candidates: a seed's image is never the same again.",
            RunWarning,
            stacklevel=stacklevel + 1,
        )

    def batch_size(self, device: str, call: Mapping[str, Any]) -> BatchSize:
        """Returns how many images of a call's height and width fit on a device at a time."""
        # What fits depends on the size of the images, so each size learns its own number.
        key = (device, call.get("height"), call.get("width"))
        if key not in self._batch_sizes:
            self._batch_sizes[key] = BatchSize(self.given_batch_size, device)
        return self._batch_sizes[key]

    @property
    def nbytes(self) -> int | None:
        """Bytes of the weights; None where the user offloaded, spread or quantised them.

        Such weights must stay where they are.
        """
        import torch

        pipes = self._pipes
        parts = [part for pipe in pipes for part in getattr(pipe, "components", {}).values()]
        modules = [part for part in parts if isinstance(part, torch.nn.Module)]
        spread = any(getattr(pipe, "hf_device_map", None) for pipe in pipes)
        return None if spread or any(map(_must_stay, modules)) else weight_bytes(modules)

    def to(self, device: str) -> None:
        """Moves the weights, and releases the memory that they took."""
        before = {str(pipe.device) for pipe in self._pipes}
        for pipe in self._pipes:
            # diffusers warns that 16-bit weights cannot run on a CPU; here they only wait there.
            pipe.to(device, silence_dtype_warnings=True)
        for place in before - {device}:
            release(place)

    @property
    def _pipes(self) -> list[Any]:
        return [self.pipe] if self.inpaint is None else [self.pipe, self.inpaint]

    def output(self, images: Any) -> Any:
        """Returns images as an output of the pipeline's own class, or as diffusers' usual one.

        Some families give the field with the images another name; `images` is always set.

        Args:
            images: a list of PIL images or arrays, or an array or tensor with a batch axis.
        """
        from diffusers import ImagePipelineOutput

        kind: Any = self.output_class or ImagePipelineOutput
        # A video is a list of frames, or an array with an axis of them.
        videos = [[image] for image in images] if isinstance(images, list) else images[:, None]
        # Fields other than images, such as a safety checker's, become None: they would describe the
        # pipeline's batch, not the chosen images.
        values = dict.fromkeys(IMAGE_FIELDS, images) | {"frames": videos}
        output = kind(**{field.name: values.get(field.name) for field in fields(kind)})
        output.images = images
        return output


def computing_device(pipe: Any) -> str:
    """Returns where a pipeline computes, also when its weights are offloaded.

    diffusers walks through all modules to find it, so do not look it up for every batch.
    """
    return str(getattr(pipe, "_execution_device", None) or getattr(pipe, "device", "cpu"))


def _must_stay(module: Any) -> bool:
    if getattr(module, "is_quantized", False) or getattr(module, "hf_quantizer", None) is not None:
        return True
    return any(map(_has_offloading_hook, module.modules()))


def _has_offloading_hook(module: Any) -> bool:
    """Says whether accelerate or diffusers loads and unloads the weights of a module."""
    registry = getattr(module, "_diffusers_hook", None)
    grouped = registry is not None and registry.get_hook("group_offloading") is not None
    return grouped or hasattr(module, "_hf_hook")


def _described(value: object) -> str:
    """Returns text for a value that JSON cannot hold. Equal values give the same text everywhere.

    Images, arrays and tensors are identified by their content, functions by their name, and
    objects whose repr is only an address by their class.
    """
    array: Any = value
    if not hasattr(value, "__array_interface__") and not hasattr(value, "detach"):
        # A repr with an address differs between processes.
        text = repr(value)
        named = array if hasattr(value, "__qualname__") else type(value)
        return text if " at 0x" not in text else f"{named.__module__}.{named.__qualname__}"
    # `float`, because NumPy has no bfloat16.
    values = np.asarray(array.detach().float().cpu() if hasattr(value, "detach") else array)
    # Arrays of other dtypes or shapes may have the same bytes.
    content = hashlib.sha256(f"{values.dtype}{values.shape}".encode() + values.tobytes())
    return f"{type(value).__qualname__} {content.hexdigest()[:16]}"
