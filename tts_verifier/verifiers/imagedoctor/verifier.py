"""The verifier that users see: images and prompts in, verdicts out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import Verifier, check_pairs
from tts_verifier.memory import fits_on_device, release, weight_bytes
from tts_verifier.types import Cost, Detail, Heatmap, Heatmaps, Setting, Verdict
from tts_verifier.verifiers.imagedoctor.checkpoint.device_map import DeviceMap
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint, load, resolve
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, Generated, Request
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MapDecoder, MapQueue
from tts_verifier.verifiers.imagedoctor.engine.kv_cache import rows_that_fit
from tts_verifier.verifiers.imagedoctor.image.letterbox import FITS, Fit, Placement
from tts_verifier.verifiers.imagedoctor.image.preprocess import Patches
from tts_verifier.verifiers.imagedoctor.ops.transfer import prepared
from tts_verifier.verifiers.imagedoctor.text.answer_template import Skeleton
from tts_verifier.verifiers.imagedoctor.text.expected_scores import Numerals, expected
from tts_verifier.verifiers.imagedoctor.text.reply import parse

MAX_CAPTION: Final = 20_000
"""Characters; longer prompts are refused rather than left to fill the memory."""


class Options(TypedDict, total=False):
    """How to load and run; every key may be absent.

    `revision`, `local_files_only`: of a hub id. `dtype`, `device`: None = bfloat16 on a GPU,
    float32 on a CPU. `device_map`: "auto" spreads the language model's layers over all GPUs.
    `fit`: "squash" (official) or "pad" (letterbox). `batch_size`: images at a time,
    None = by the memory that is free. `heatmaps`: decode maps, None = with "diagnose" only.
    `skeleton`: with detail "score", ask for the digits alone. `max_new_tokens`: None = the
    checkpoint's, or 2048.
    """

    revision: str | None
    local_files_only: bool
    dtype: torch.dtype | str | None
    device: torch.device | str | None
    device_map: DeviceMap | None
    fit: Fit
    batch_size: int | None
    heatmaps: bool | None
    skeleton: bool
    max_new_tokens: int | None


class ImageDoctor(Verifier):
    """Scores `semantic_alignment`, `aesthetics`, `plausibility`, `overall` in [0, 1].

    Each also as `…_expected`, over the digits' probabilities (see `numbers`), which seldom
    ties; an objective may name either. Higher is better. Heatmaps `misalignment` and
    `artifact`: 1 = flawed.

    Args:
        checkpoint: from `loading.load`.
        fit: how an image is brought into the model's square.
        batch_size: images at a time, None = by the memory that is free.
        heatmaps: whether maps are decoded; None = with detail "diagnose" only.
        skeleton: with detail "score", give the answer's text and ask for its digits alone:
            faster, the same numbers where the model would have written that text.
        settings: more to note in the log.
        home: the device that a run is to move it to for judging; None = it stays.

    Raises:
        InputError: `fit` or `batch_size` is not usable, or the checkpoint's tokenizer does not
            write scores digit by digit, as a skeleton needs it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        fit: Fit = "squash",
        batch_size: int | None = None,
        heatmaps: bool | None = None,
        skeleton: bool = False,
        settings: Mapping[str, Setting] | None = None,
        home: str | None = None,
    ) -> None:
        if fit not in FITS:
            raise InputError(f"fit must be one of {', '.join(FITS)}, got {fit!r}.")
        if batch_size is None:
            batch_size = rows_that_fit(checkpoint.model, checkpoint.limits)
        _check_positive("batch_size", batch_size)
        self.checkpoint = checkpoint
        self.home = home
        self.fit: Fit = fit
        self.batch_size = batch_size
        self.heatmaps = heatmaps
        self.engine = Engine(checkpoint.model, checkpoint.limits, slots=batch_size)
        self._skeleton = _skeleton(checkpoint) if skeleton else None
        self._filling = _filling(checkpoint, self._skeleton, batch_size)
        self._maps = MapDecoder(checkpoint.model)
        weight = checkpoint.model.lm_head.weight
        self.settings = {
            **(settings or {}),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "fit": fit,
            "batch_size": batch_size,
            "max_new_tokens": checkpoint.limits.max_new_tokens,
            "repetition_penalty": checkpoint.limits.penalty,
            "skeleton": skeleton,
        }

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str, **options: Unpack[Options]
    ) -> ImageDoctor:
        """Loads "shapes" (bundled), a folder or a hub id; `Options` says what can be set.

        Raises:
            CheckpointError: it cannot be found, or its parts do not fit together.
            InputError: an option is not usable.
        """
        if unknown := sorted(set(options) - set(Options.__annotations__)):
            raise InputError(
                f"Unknown options {', '.join(unknown)}; the known ones are "
                f"{', '.join(Options.__annotations__)}."
            )
        revision = options.get("revision")
        folder = resolve(
            name_or_path, revision=revision, offline=options.get("local_files_only", False)
        )
        if (limit := options.get("max_new_tokens")) is not None:
            _check_positive("max_new_tokens", limit)
        dtype, device, home = options.get("dtype"), options.get("device"), None
        if device is None and options.get("device_map") is None:
            home = _waits_for(folder)
            device = None if home is None else "cpu"
            dtype = dtype or (None if home is None else torch.bfloat16)
        checkpoint = load(folder, dtype=dtype, device=device, device_map=options.get("device_map"))
        if limit is not None:
            checkpoint = replace(
                checkpoint, limits=replace(checkpoint.limits, max_new_tokens=limit)
            )
        return cls(
            checkpoint,
            fit=options.get("fit", "squash"),
            batch_size=options.get("batch_size"),
            heatmaps=options.get("heatmaps"),
            skeleton=options.get("skeleton", False),
            settings={"model": name_or_path, "revision": revision},
            home=home,
        )

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Judges image i against prompt i, in batches.

        Args:
            images: see `images.as_image` for what is accepted.
            prompts: captions, any text; special tokens in them are only text.
            detail: "diagnose" = the official reasoning instruction, with heatmaps and boxes;
                "score" = the official answer-only one: numbers, and maps only if asked for.

        Returns:
            A verdict each, in order. A score that the reply does not give is NaN, a heatmap
            that it does not give is absent.

        Raises:
            InputError: an image or a prompt cannot be used, or the lengths differ.
        """
        if detail not in ("score", "diagnose"):
            raise InputError(f"detail must be 'score' or 'diagnose', got {detail!r}.")
        pictures = as_images(images)
        check_pairs(pictures, prompts)
        captions = [_caption(i, prompt) for i, prompt in enumerate(prompts)]
        order = sorted(range(len(pictures)), key=lambda i: -len(captions[i]))
        began = time.perf_counter()
        with _current(self.device):
            judged = self._judge([(pictures[i], captions[i]) for i in order], detail)
        seconds = (time.perf_counter() - began) / max(len(order), 1)
        verdicts = {
            i: self._verdict(*parts, detail=detail, seconds=seconds)
            for i, parts in zip(order, judged, strict=True)
        }
        return [verdicts[i] for i in range(len(pictures))]

    @property
    def device(self) -> torch.device:
        """Where it computes; of several devices the one that pictures are sent to."""
        return self.checkpoint.model.lm_head.weight.device

    @property
    def nbytes(self) -> int | None:
        """Bytes of the weights; None where they must not be moved, being on several devices."""
        places = {p.device for p in self.checkpoint.model.parameters()}
        return weight_bytes([self.checkpoint.model]) if len(places) == 1 else None

    def to(self, device: torch.device | str) -> ImageDoctor:
        """Moves the weights; what was recorded and written into is made anew when needed."""
        before = str(self.device)
        for part in (self.engine, self._filling, self._maps):
            part.forget()
        self.checkpoint.model.to(device)
        if str(self.device) != before:
            release(before)
        return self

    def _judge(self, pairs: Sequence[tuple[Image.Image, str]], detail: Detail) -> list[_Judged]:
        """Runs the engine, and the heads as replies end; pictures are prepared when needed."""
        c, placed = self.checkpoint, []
        known = self._skeleton if self._skeleton and detail == "score" else Skeleton()
        engine = self._filling if known.turns else self.engine

        def requests() -> Iterator[Request]:
            pictures = prepared(self._patches, [picture for picture, _ in pairs], self.device)
            for p, (_, caption) in zip(pictures, pairs, strict=True):
                cells = len(p.values) // c.processor.merge_size**2
                ids = c.words.prompt(caption, cells=cells, reasoning=detail == "diagnose")
                ids += known.before
                self._check_length(ids, caption)
                placed.append((p.placement, p.grid))
                yield Request(ids, p.values, p.grid)

        wanted = self.heatmaps if self.heatmaps is not None else detail == "diagnose"
        maps = MapQueue(self._maps)
        found: dict[int, Generated] = {}
        for number, reply in engine.replies(requests()):
            if wanted:
                maps.add(number, reply, placed[number][1])
            found[number] = _whole(replace(reply, visual=reply.visual[:0]), known)
        done = maps.finish()
        return [
            _Judged(found[i], placement, done.get(i, {})) for i, (placement, _) in enumerate(placed)
        ]

    def _patches(self, picture: Image.Image) -> Patches:
        return self.checkpoint.processor(picture, fit=self.fit)

    def _check_length(self, ids: list[int], caption: str) -> None:
        limit = int(self.checkpoint.model.config.text["max_position_embeddings"])
        if len(ids) >= limit:
            raise InputError(
                f"A prompt must fit the model's {limit} tokens with instruction and image, this "
                f"one makes {len(ids)}: {caption[:60]!r}… Shorten it."
            )

    def _verdict(
        self,
        reply: Generated,
        placement: Placement,
        maps: Mapping[str, NDArray[np.float32]],
        *,
        detail: Detail,
        seconds: float,
    ) -> Verdict:
        words = self.checkpoint.words
        text = words.decode(reply.ids)
        said = parse(text, reasoning=detail == "diagnose", ended=reply.ended)
        scores = {**said.scores}
        if self.checkpoint.limits.watched:
            scores |= expected(said, text, [words.decode([i]) for i in reply.ids], reply.odds)
        boxes = (placement.to_image(box) for box in said.boxes)
        raw = {n: Heatmap(grid, placement.size, placement.box) for n, grid in maps.items()}
        return Verdict(
            scores=scores,
            heatmaps=Heatmaps(raw),
            boxes=tuple(box for box in boxes if box is not None),
            text=text,
            detail=detail,
            cost=Cost(verifier_calls=1, judge_seconds=seconds),
        )


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one, as captured graphs and new streams need it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _waits_for(folder: Path) -> str | None:
    """Returns the GPU that a checkpoint does not fit on now, None if it does or there is none."""
    if not torch.cuda.is_available():
        return None
    gpu = str(torch.device("cuda", torch.cuda.current_device()))
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if fits_on_device(nbytes, gpu):
        return None
    warnings.warn(
        f"The verifier's {nbytes / 2**30:.1f} GiB do not fit on {gpu} beside what is there. It "
        "waits in host memory; a run moves it there in turns with the generator. Give a device "
        "to place it yourself.",
        RunWarning,
        stacklevel=4,
    )
    return gpu


class _Judged(NamedTuple):
    """What the engine gave for one image."""

    reply: Generated
    placement: Placement
    maps: Mapping[str, NDArray[np.float32]]


def _skeleton(checkpoint: Checkpoint) -> Skeleton:
    numerals = Numerals.of(checkpoint.words)
    if numerals is None:
        raise InputError(
            "skeleton needs a checkpoint whose tokenizer writes scores digit by digit, this one "
            "does not. Leave skeleton out."
        )
    return Skeleton.of(checkpoint.words, checkpoint.model.config, numerals)


def _filling(checkpoint: Checkpoint, known: Skeleton | None, slots: int) -> Engine:
    """Returns an engine that writes a skeleton's turns; it takes no memory until it is used."""
    known = known or Skeleton()
    count = sum(1 + len(turn.then) for turn in known.turns)
    limits = replace(checkpoint.limits, max_new_tokens=count, turns=known.turns)
    return Engine(checkpoint.model, limits, slots=slots)


def _whole(reply: Generated, known: Skeleton) -> Generated:
    """Adds to a reply what was known of it beforehand; nothing of that was chosen."""
    if not known.turns:
        return reply
    around = ((len(known.before), len(known.after)), (0, 0))
    ids = [*known.before, *reply.ids, *known.after]
    return replace(reply, ids=ids, odds=np.pad(reply.odds, around), ended=True)


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}.")


def _caption(index: int, prompt: str) -> str:
    """Returns the prompt, or says why it cannot be one."""
    if not isinstance(prompt, str):
        raise InputError(f"Prompt {index} must be a string, it is a {type(prompt).__name__}.")
    if not prompt.strip():
        raise InputError(f"Prompt {index} must say what the image should show, it is empty.")
    if len(prompt) > MAX_CAPTION:
        raise InputError(
            f"Prompt {index} must have at most {MAX_CAPTION} characters, it has {len(prompt)}."
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"Prompt {index} must be valid Unicode: {error.reason}.") from None
    return prompt
