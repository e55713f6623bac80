"""The generator's training data: captions of the training split and images that show them.

Captions are made on the CPU, by worker processes if there are any; scenes and images are made
on the training device.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.grammar import Spec, random_phrase
from tts_verifier.shapes.renderer import coverage, paint, visible
from tts_verifier.shapes.scene import SpecTensors, encode, sample_scenes
from tts_verifier.shapes.vocabulary import CATEGORIES, COLOURS, RELATIONS, SHAPES
from tts_verifier.training.miniature.generator.biases import biased_spec

EMPTY_SHARE: Final = 0.1
"""Share of captions replaced by the empty one, for classifier-free guidance."""
IMAGE_TOKEN_SIDE: Final = 16
"""Pixels a side of one image token."""
OBJECT_GAP: Final = 8.0
"""Pixels between the objects of an image, because a small model fuses objects that are closer."""
MIN_COVERED_SHARE: Final = 0.3
"""Share of an image token that an object must cover to be its label."""
FIELD_CLASSES: Final = (
    len(CATEGORIES),
    len(SHAPES),
    len(COLOURS) + 1,
    len(SHAPES) + 1,
    len(COLOURS) + 1,
    4,
    len(RELATIONS) + 1,
)
"""Number of classes of each field of a caption: category, first shape, first colour, second
shape, second colour, count, relation. The last class of an optional field is "none"."""


class CaptionBatch(NamedTuple):
    """B captions, and the objects that their images must show."""

    ids: Tensor
    """int64 (B, 24), token ids."""
    shape: Tensor
    """As in `SpecTensors`."""
    colour: Tensor
    """As in `SpecTensors`."""
    relation: Tensor
    """As in `SpecTensors`."""
    fields: Tensor
    """int64 (B, 7), what the captions say, see `FIELD_CLASSES`."""


class CaptionDataset(IterableDataset[CaptionBatch]):
    """Endless batches of captions of the training split.

    Args:
        tokenizer: the pipeline's.
        batch: captions a batch.
        seed: decides the captions, together with the number of the worker.
        biased: whether images show `biases.biased_spec` of a caption instead of its own spec.
    """

    def __init__(self, tokenizer: Any, batch: int, seed: int, *, biased: bool = False) -> None:
        self.tokenizer, self.batch, self.seed, self.biased = tokenizer, batch, seed, biased

    def __iter__(self) -> Iterator[CaptionBatch]:
        worker = get_worker_info()
        rng = random.Random(f"{self.seed} {worker.id if worker else 0}")
        while True:
            specs = random_specs(self.batch, rng, split="train")
            texts = ["" if rng.random() < EMPTY_SHARE else random_phrase(s, rng) for s in specs]
            shown = encode([biased_spec(s, rng) for s in specs] if self.biased else specs)
            # The fields are those of the caption, whatever its image shows.
            fields = torch.tensor([caption_fields(s) for s in specs])
            ids = tokenize(self.tokenizer, texts)
            yield CaptionBatch(ids, shown.shape, shown.colour, shown.relation, fields)


def caption_fields(spec: Spec) -> list[int]:
    """Returns what a caption says as classes, in the order of FIELD_CLASSES."""
    colours = [*COLOURS, None]
    first, second = spec.nouns[0], spec.nouns[1] if len(spec.nouns) > 1 else None
    return [
        CATEGORIES.index(spec.category),
        SHAPES.index(first.shape),
        colours.index(first.colour),
        len(SHAPES) if second is None else SHAPES.index(second.shape),
        colours.index(None if second is None else second.colour),
        spec.count - 1,
        len(RELATIONS) if spec.relation is None else RELATIONS.index(spec.relation),
    ]


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """Returns token ids (B, 24), padded and cut as the pipeline does it."""
    encoded = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids  # type: ignore[no-any-return]


def caption_stream(
    tokenizer: Any, batch: int, *, seed: int, workers: int, biased: bool = False
) -> Iterator[CaptionBatch]:
    """Streams batches of captions, made by `workers` processes or, with 0, by this one."""
    data = CaptionDataset(tokenizer, batch, seed, biased=biased)
    return iter(DataLoader(data, batch_size=None, num_workers=workers))


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """B images, and what each of their 64 image tokens shows."""

    images: Tensor
    """float32 (B, 3, 128, 128), sRGB in [0, 1]."""
    shape: Tensor
    """int64 (B, 64), index into SHAPES; `len(SHAPES)` = background."""
    colour: Tensor
    """int64 (B, 64), index into COLOURS; `len(COLOURS)` = background."""


@torch.no_grad()
def render_captions(captions: CaptionBatch, generator: torch.Generator) -> LabelledImages:
    """Renders a random scene for each caption, on the generator's device."""
    device = generator.device
    shown_specs = (captions.shape, captions.colour, captions.relation)
    shape, colour, relation = (t.to(device, non_blocking=True) for t in shown_specs)
    scenes = sample_scenes(SpecTensors(shape, colour, relation), generator, gap=OBJECT_GAP)
    cover = coverage(scenes)
    # Of the visible parts, so that an image token is labelled with what it shows in front.
    share, slot = avg_pool2d(visible(cover), IMAGE_TOKEN_SIDE).flatten(2).max(1)
    shown = share > MIN_COVERED_SHARE
    return LabelledImages(
        paint(scenes, cover),
        torch.where(shown, scenes.shape.gather(1, slot), len(SHAPES)),
        torch.where(shown, scenes.colour.gather(1, slot), len(COLOURS)),
    )
