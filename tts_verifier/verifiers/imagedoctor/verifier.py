"""The verifier that users see: images and prompts in, verdicts out."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import torch
from PIL import Image

from tts_verifier.errors import InputError, UnsupportedError, suggestion
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import ImageDoctorOptions, Verifier, check_detail, check_pairs
from tts_verifier.loading.devices import check_device, check_dtype
from tts_verifier.loading.memory import release, weight_bytes
from tts_verifier.types import Detail, Setting, Verdict
from tts_verifier.types.score_names import EXPECTED, SCORE_NAMES
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    BUNDLED_REVISION,
    BUNDLED_VERIFIER,
    Checkpoint,
    find_checkpoint,
    gpu_that_is_full,
    load_checkpoint,
    load_copies,
)
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MAPS
from tts_verifier.verifiers.imagedoctor.image.letterbox import FIT_MODES, FitMode
from tts_verifier.verifiers.imagedoctor.image.prefetch import AHEAD, map_ahead
from tts_verifier.verifiers.imagedoctor.live import LiveVerdicts
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.quantise import check_supports_fp8, quantise_model
from tts_verifier.verifiers.imagedoctor.options import (
    check_positive,
    check_precision,
    given_devices,
)
from tts_verifier.verifiers.imagedoctor.pairs import Answer, PairProcessor, PreparedPair
from tts_verifier.verifiers.imagedoctor.replicas import Replica, answer_together
from tts_verifier.verifiers.imagedoctor.requests import (
    GenerationRequest,
    check_prompt,
)
from tts_verifier.verifiers.imagedoctor.shared_calls import SharedCalls, calls_of
from tts_verifier.verifiers.imagedoctor.text.answer_template import AnswerTemplate


class ImageDoctor(Verifier):
    """Scores images for `semantic_alignment`, `aesthetics`, `plausibility` and `overall`.

    Scores are in [0, 1], higher is better. Each score also comes as `…_expected`, its expected
    value over the probabilities of the digits (see `text.expected_scores`), which seldom ties; an
    objective may name either. The heatmaps are `misalignment` and `artifact`, 1 = flawed.

    Safe to share between threads: calls wait for each other, and those of one `detail` that wait
    together run as one batch (see `shared_calls`). A move waits for the calls before it. A call
    from within a call, in the same thread, raises UnsupportedError at once. The first call fuses
    weights of `checkpoint.model` in place (see `ops.fused_weights`); its state dict stays the same.

    Args:
        checkpoint: from `load_checkpoint`.
        copies: copies of its model on further devices; all of them share the images of a call.
        fit: how an image is fitted into the model's square.
        batch_size: images at a time on each device, None = as many as there are, as its free
            memory allows, and as it gains from (at most 512 on a GPU, 32 on a CPU).
        heatmaps: whether to decode heatmaps, None = with detail "diagnose" only.
        answer_template: with detail "score", give the text of the answer and ask for its digits
            alone. This is faster, and gives the same numbers if the model would have written
            that text.
        settings: more settings for the log.
        home: the device that a run moves the verifier to for verifying; None = it stays.

    Raises:
        InputError: `fit` or `batch_size` is not usable, or the checkpoint's tokenizer does not
            write scores digit by digit, which an answer template needs.
    """

    map_names = MAPS
    score_names: Collection[str] = (*SCORE_NAMES, *(name + EXPECTED for name in SCORE_NAMES))

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        copies: Sequence[ImageDoctorModel] = (),
        fit: FitMode = "squash",
        batch_size: int | None = None,
        heatmaps: bool | None = None,
        answer_template: bool = False,
        settings: Mapping[str, Setting] | None = None,
        home: str | None = None,
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise InputError(
                f"ImageDoctor needs a loaded checkpoint, got {checkpoint!r:.80}. Use "
                "ImageDoctor.from_pretrained for a name or a folder.",
                argument="checkpoint",
            )
        if fit not in FIT_MODES:
            raise InputError(
                f"fit must be one of {', '.join(FIT_MODES)}, got {fit!r}.", argument="fit"
            )
        if batch_size is not None:
            check_positive("batch_size", batch_size)
        self.checkpoint = checkpoint
        self.home = home
        self.batch_size = batch_size
        config = checkpoint.model.config
        template = AnswerTemplate()
        if answer_template:
            template = AnswerTemplate.from_tokenizer(checkpoint.tokenizer, config)
        self.pair_processor = PairProcessor(
            checkpoint.tokenizer,
            checkpoint.processor,
            fit,
            template,
            heatmaps,
            most_tokens=int(config.text["max_position_embeddings"]),
        )
        self.replicas = [
            Replica(model, checkpoint.limits, template, batch_size)
            for model in (checkpoint.model, *copies)
        ]
        if not checkpoint.limits.watched_groups:
            self.score_names = SCORE_NAMES
        # Everything that decides a verdict, for the log.
        weight = checkpoint.model.lm_head.weight
        self.settings = {
            **(settings or {}),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "fit": fit,
            "max_new_tokens": checkpoint.limits.max_new_tokens,
            "repetition_penalty": checkpoint.limits.penalty,
            "answer_template": answer_template,
        }

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, **options: Unpack[ImageDoctorOptions]
    ) -> ImageDoctor:
        """Loads a verifier: "shapes" (bundled), a folder, or a hub id.

        Args:
            name_or_path: see above.
            **options: see `ImageDoctorOptions`. With neither `device` nor `device_map`, a
                checkpoint that does not fit on the GPU waits in host memory, and a run moves it
                to the GPU when it needs it.

        Raises:
            CheckpointError: the checkpoint cannot be found, or its parts do not fit together.
            InputError: an option is unknown or not usable.
        """
        if unknown := sorted(set(options) - set(ImageDoctorOptions.__annotations__)):
            raise InputError(
                f"Unknown options {', '.join(unknown)}. "
                f"{suggestion(unknown[0], ImageDoctorOptions.__annotations__)}"
            )
        # First of all, since finding a checkpoint may download it.
        given = given_devices(options)
        dtype, home = check_dtype(options.get("dtype")), None
        if (max_new_tokens := options.get("max_new_tokens")) is not None:
            check_positive("max_new_tokens", max_new_tokens)
        check_precision(precision := options.get("precision"))
        revision = options.get("revision")
        folder = find_checkpoint(
            name_or_path, revision=revision, offline=options.get("local_files_only", False)
        )
        device: torch.device | str | None = given[0] if given else None
        # A user who says nothing about devices gets one that works beside a generator.
        if device is None and options.get("device_map") is None:
            home = gpu_that_is_full(folder)
            device = None if home is None else "cpu"
            # It computes on the GPU, so it takes a GPU's dtype while it waits on the CPU.
            dtype = dtype or (None if home is None else torch.bfloat16)
        if precision == "fp8" and home is not None:
            # It is rounded on the CPU, where fp8 is slow and not refused.
            check_supports_fp8(torch.device(home))
        checkpoint = load_checkpoint(
            folder, dtype=dtype, device=device, device_map=options.get("device_map")
        )
        copies = load_copies(folder, checkpoint.model, given[1:])
        if precision == "fp8":
            for model in (checkpoint.model, *copies):
                quantise_model(model)
        if max_new_tokens is not None:
            limits = replace(checkpoint.limits, max_new_tokens=max_new_tokens)
            checkpoint = replace(checkpoint, limits=limits)
        return cls(
            checkpoint,
            copies=copies,
            fit=options.get("fit", "squash"),
            batch_size=options.get("batch_size"),
            heatmaps=options.get("heatmaps"),
            answer_template=options.get("answer_template", False),
            settings={
                "model": str(name_or_path),
                "revision": BUNDLED_REVISION if name_or_path == BUNDLED_VERIFIER else revision,
                "precision": precision,
            },
            home=home,
        )

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Scores image i against prompt i, in batches.

        Args:
            images: whatever `images.as_image` accepts.
            prompts: any text; the names of special tokens in it are only text.
            detail: "diagnose" uses the official instruction that asks for reasons, and gives
                heatmaps and boxes. "score" uses the official one that asks for the answer alone,
                and gives heatmaps only if the verifier was made with `heatmaps=True`.

        Returns:
            One verdict per image, in order. A score that the reply does not give is NaN, and a
            heatmap that it does not give is absent.

        Raises:
            InputError: an image or a prompt cannot be used, or the lengths differ.
        """
        check_detail(detail)
        rgb = as_images(images)
        texts = check_pairs(rgb, prompts)
        # All that may be wrong with this call is found here, before it joins other threads' calls.
        # Candidates of one prompt share its tokens.
        ids: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            if text not in ids:
                ids[text] = self.pair_processor.token_ids(check_prompt(i, text), detail)
        inputs = [_Input(image, ids[text]) for image, text in zip(rgb, texts, strict=True)]
        if not inputs:
            return []
        # Two verifiers may share a model, but not a pass: each has its own engines and options.
        results = self._calls.run((id(self), detail), inputs, partial(self._generate, detail))
        return [
            self.pair_processor.verdict(image.size, detail, answer)
            for image, answer in zip(rgb, results, strict=True)
        ]

    @property
    def live_details(self) -> Collection[Detail]:
        """The details that `live` serves."""
        return self.pair_processor.live_details

    @property
    def room(self) -> int:
        """How many pairs are worth having in `live` at a time: those that run, as many to take
        their places, and a few whose maps are being decoded."""
        return sum(2 * replica.engine.sequences + AHEAD for replica in self.replicas)

    @contextmanager
    def live(self) -> Iterator[LiveVerdicts]:
        """Takes pairs that arrive while earlier ones are being answered.

        Inside the `with` block the engines belong to it: `verify` and `to` wait until it is left,
        in this thread they raise UnsupportedError. Leaving it answers what it has.
        """
        with self._calls.alone(), LiveVerdicts(self.replicas, self.pair_processor) as verdicts:
            yield verdicts

    @property
    def device(self) -> torch.device:
        """The device that it computes on; of several devices the first."""
        with self._calls.moving:
            return self.checkpoint.model.lm_head.weight.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The device of each copy of the model."""
        with self._calls.moving:
            return tuple(replica.device for replica in self.replicas)

    @property
    def engine(self) -> Engine:
        """The engine of the first device, for free replies."""
        return self.replicas[0].engine

    @property
    def nbytes(self) -> int | None:
        """Bytes of the weights; None if they are on several devices, and so must not be moved."""
        if len(self.replicas) > 1:
            return None
        with self._calls.moving:
            devices = {p.device for p in self.checkpoint.model.parameters()}
            return weight_bytes([self.checkpoint.model]) if len(devices) == 1 else None

    def to(self, device: torch.device | str) -> ImageDoctor:
        """Moves the weights; drops buffers and captured graphs, which are made anew when needed.

        Raises:
            InputError: this machine has no such device.
            UnsupportedError: there are copies on several devices.
        """
        check_device(device)
        if len(self.replicas) > 1:
            raise UnsupportedError(
                "Only a verifier on one device can be moved; this one has a copy on each of "
                f"{', '.join(map(str, self.devices))}. Load another one with device='{device}'."
            )
        with self._calls.alone(), self._calls.moving:
            before = str(self.device)
            self._forget()
            self.checkpoint.model.to(device)
            if str(self.device) != before:
                release(before)
        return self

    @property
    def _calls(self) -> SharedCalls:
        return calls_of(self.checkpoint.model)

    def _forget(self) -> None:
        for replica in self.replicas:
            replica.forget()

    def _generate(self, detail: Detail, inputs: Sequence[_Input]) -> list[Answer]:
        """Returns the reply and the heatmaps of each input; one thread at a time calls it."""
        # Longest first, so that the KV cache need not grow later.
        order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i].ids))
        grid = self.checkpoint.processor.grid if self.pair_processor.has_maps(detail) else None
        try:
            # Maps are decoded while replies are made.
            with closing(self._requests([inputs[i] for i in order])) as requests:
                template = self.pair_processor.template_for(detail)
                answers = answer_together(self.replicas, requests, len(inputs), template, grid)
        except BaseException:
            # The buffers may be in any state.
            self._forget()
            raise
        by_place = dict(zip(order, answers, strict=True))
        return [by_place[i] for i in range(len(inputs))]

    def _requests(self, inputs: Sequence[_Input]) -> Generator[GenerationRequest, None, None]:
        """Prepares requests when an engine asks for them; beside a GPU, images a few ahead."""
        ahead = AHEAD * len(self.replicas)
        images = [image for image, _ in inputs]
        prepared = map_ahead(self.pair_processor.levels, images, self.device, ahead=ahead)
        for levels, (_, ids) in zip(prepared, inputs, strict=True):
            yield self.pair_processor.request(PreparedPair(ids, levels))


class _Input(NamedTuple):
    """An image and its conversation, checked and ready for a pass."""

    image: Image.Image
    """RGB."""
    ids: list[int]
    """The tokens before the reply."""
