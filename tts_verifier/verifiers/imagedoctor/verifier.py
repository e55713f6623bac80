"""The verifier that users see: images and prompts in, verdicts out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.seams import Verifier, check_pairs
from tts_verifier.types import Cost, Detail, Heatmap, Heatmaps, Setting, Verdict
from tts_verifier.verifiers.imagedoctor.answer import parse
from tts_verifier.verifiers.imagedoctor.decode import Generated, Request, generate, heatmaps
from tts_verifier.verifiers.imagedoctor.geometry import FITS, Fit, Placement
from tts_verifier.verifiers.imagedoctor.loading import Checkpoint, load, resolve
from tts_verifier.verifiers.imagedoctor.placement import DeviceMap

MAPS: Final = ("misalignment", "artifact")
MAX_CAPTION: Final = 20_000
"""Characters; longer prompts are refused rather than left to fill the memory."""


class Options(TypedDict, total=False):
    """How to load and run; every key may be absent.

    `revision`, `local_files_only`: of a hub id. `dtype`, `device`: None = bfloat16 on a GPU,
    float32 on a CPU. `device_map`: "auto" spreads the language model's layers over all GPUs.
    `fit`: "squash" (official) or "pad" (letterbox). `batch_size`: images at a time.
    `max_new_tokens`: None = the checkpoint's, or 2048.
    """

    revision: str | None
    local_files_only: bool
    dtype: torch.dtype | str | None
    device: torch.device | str | None
    device_map: DeviceMap | None
    fit: Fit
    batch_size: int
    max_new_tokens: int | None


class ImageDoctor(Verifier):
    """Scores `semantic_alignment`, `aesthetics`, `plausibility`, `overall` in [0, 1].

    Heatmaps `misalignment` and `artifact`: 1 = flawed. Higher scores are better.

    Args:
        checkpoint: from `loading.load`.
        fit: how an image is brought into the model's square.
        batch_size: images at a time.
        settings: more to note in the log.

    Raises:
        InputError: `fit` or `batch_size` is not usable.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        fit: Fit = "squash",
        batch_size: int = 32,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        if fit not in FITS:
            raise InputError(f"fit must be one of {', '.join(FITS)}, got {fit!r}.")
        _check_positive("batch_size", batch_size)
        self.checkpoint = checkpoint
        self.fit: Fit = fit
        self.batch_size = batch_size
        weight = checkpoint.model.lm_head.weight
        self.settings = {
            **(settings or {}),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "fit": fit,
            "batch_size": batch_size,
            "max_new_tokens": checkpoint.limits.max_new_tokens,
            "repetition_penalty": checkpoint.limits.penalty,
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
        checkpoint = load(
            folder,
            dtype=options.get("dtype"),
            device=options.get("device"),
            device_map=options.get("device_map"),
        )
        if limit is not None:
            checkpoint = replace(
                checkpoint, limits=replace(checkpoint.limits, max_new_tokens=limit)
            )
        return cls(
            checkpoint,
            fit=options.get("fit", "squash"),
            batch_size=options.get("batch_size", 32),
            settings={"model": name_or_path, "revision": revision},
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
                "score" = the official answer-only one: numbers and no maps.

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
        order = sorted(range(len(pictures)), key=lambda i: len(captions[i]))
        verdicts: dict[int, Verdict] = {}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            judged = self._batch([pictures[i] for i in part], [captions[i] for i in part], detail)
            verdicts.update(zip(part, judged, strict=True))
        return [verdicts[i] for i in range(len(pictures))]

    def _batch(
        self, pictures: list[Image.Image], captions: list[str], detail: Detail
    ) -> list[Verdict]:
        began = time.perf_counter()
        c, reasoning = self.checkpoint, detail == "diagnose"
        patches = [c.processor(picture, fit=self.fit) for picture in pictures]
        merged = c.processor.merge_size**2
        requests = []
        for caption, p in zip(captions, patches, strict=True):
            ids = c.words.prompt(caption, cells=len(p.values) // merged, reasoning=reasoning)
            self._check_length(ids, caption)
            requests.append(Request(ids, p.values, p.grid))
        replies = generate(c.model, requests, c.limits)
        grids = [
            (p.grid[0] // c.processor.merge_size, p.grid[1] // c.processor.merge_size)
            for p in patches
        ]
        maps = _maps(c, replies, grids) if reasoning else [{}] * len(replies)
        seconds = (time.perf_counter() - began) / len(pictures)
        return [
            self._verdict(reply, p.placement, grid_maps, detail=detail, seconds=seconds)
            for reply, p, grid_maps in zip(replies, patches, maps, strict=True)
        ]

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
        maps: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]],
        *,
        detail: Detail,
        seconds: float,
    ) -> Verdict:
        text = self.checkpoint.words.decode(reply.ids)
        said = parse(text, reasoning=detail == "diagnose", ended=reply.ended)
        boxes = (placement.to_image(box) for box in said.boxes)
        raw = {n: Heatmap(grid, placement.size, placement.box) for n, grid in maps.items()}
        return Verdict(
            scores=said.scores,
            heatmaps=Heatmaps(raw),
            boxes=tuple(box for box in boxes if box is not None),
            text=text,
            detail=detail,
            cost=Cost(verifier_calls=1, judge_seconds=seconds),
        )


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


def _maps(
    checkpoint: Checkpoint, replies: Sequence[Generated], grids: Sequence[tuple[int, int]]
) -> list[dict[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """Decodes the maps whose token was written: one dictionary a reply, batched by grid."""
    found: list[dict[str, Any]] = [{} for _ in replies]
    wanted = [(i, k) for i, reply in enumerate(replies) for k in (0, 1) if reply.seen[k]]
    for grid in dict.fromkeys(grids[i] for i, _ in wanted):
        members = [(i, k) for i, k in wanted if grids[i] == grid]
        states = torch.stack([replies[i].states[k] for i, k in members])
        visual = torch.stack([replies[i].visual for i, _ in members])
        decoded = heatmaps(checkpoint.model, states, visual, grid)
        for (i, k), grid_map in zip(members, decoded, strict=True):
            found[i][MAPS[k]] = grid_map
    return found
