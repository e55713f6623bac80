"""What the generator learns from: captions of the training split and scenes that serve them.

Captions are made on the CPU, by worker processes if there are any; scenes and pictures on
the training device.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.grammar import Spec, phrase, variants
from tts_verifier.shapes.renderer import coverage, paint, visible
from tts_verifier.shapes.scene import SpecTensors, encode, sample_scenes
from tts_verifier.shapes.vocabulary import CATEGORIES, COLOURS, RELATIONS, SHAPES
from tts_verifier.training.miniature.generator.biases import drawn_for

EMPTY_SHARE: Final = 0.1
"""Captions replaced by the empty one, for classifier-free guidance."""
TOKEN: Final = 16
"""Pixels a side of one image token."""
GAP: Final = 8.0
"""Pixels between the things in a picture: drawn closer, a small model fuses them."""
COVERED: Final = 0.3
"""Share of an image token that an object must cover to be what the token shows."""
FIELDS: Final = (
    len(CATEGORIES),
    len(SHAPES),
    len(COLOURS) + 1,
    len(SHAPES) + 1,
    len(COLOURS) + 1,
    4,
    len(RELATIONS) + 1,
)
"""Number of classes of what a caption says: category, first shape and colour, second shape and
colour, count, relation; the last class of an optional field is "none"."""

Asked = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Token ids (B, 24), `SpecTensors`' shape, colour and relation, and fields (B, 7)."""


class Captions(IterableDataset[Asked]):
    """Endless batches of captions of the training split; `habits`: see `habits.drawn_for`."""

    def __init__(self, tokenizer: Any, batch: int, seed: int, *, habits: bool = False) -> None:
        self.tokenizer, self.batch, self.seed, self.habits = tokenizer, batch, seed, habits

    def __iter__(self) -> Iterator[Asked]:
        worker = get_worker_info()
        rng = random.Random(f"{self.seed} {worker.id if worker else 0}")
        while True:
            specs = random_specs(self.batch, rng, split="train")
            texts = [
                "" if rng.random() < EMPTY_SHARE else phrase(s, rng.randrange(variants(s)))
                for s in specs
            ]
            asked = encode([drawn_for(s, rng) for s in specs] if self.habits else specs)
            fields = torch.tensor([said(s) for s in specs])
            yield tokens(self.tokenizer, texts), asked.shape, asked.colour, asked.relation, fields


def said(spec: Spec) -> list[int]:
    """Returns what a caption says as classes, in the order of FIELDS."""
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


def tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """Returns ids (B, 24) as the pipeline makes them."""
    made = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return made.input_ids  # type: ignore[no-any-return]


def stream(
    tokenizer: Any, batch: int, *, seed: int, workers: int, habits: bool = False
) -> Iterator[Asked]:
    """Streams batches of captions."""
    data = Captions(tokenizer, batch, seed, habits=habits)
    return iter(DataLoader(data, batch_size=None, num_workers=workers))


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """`images`: (B, 3, 128, 128) in [0, 1]. `shape`, `colour`: (B, 64), what each image token
    shows, the last class is background."""

    images: Tensor
    shape: Tensor
    colour: Tensor


@torch.no_grad()
def draw(asked: Asked, generator: torch.Generator) -> Pictures:
    """Draws a scene for each caption on the generator's device."""
    device = generator.device
    _, shape, colour, relation, _ = (t.to(device, non_blocking=True) for t in asked)
    scenes = sample_scenes(SpecTensors(shape, colour, relation), generator, gap=GAP)
    cover = coverage(scenes)
    share, slot = avg_pool2d(visible(cover), TOKEN).flatten(2).max(1)
    shown = share > COVERED
    return Pictures(
        paint(scenes, cover),
        torch.where(shown, scenes.shape.gather(1, slot), len(SHAPES)),
        torch.where(shown, scenes.colour.gather(1, slot), len(COLOURS)),
    )
