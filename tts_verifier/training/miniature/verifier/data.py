"""What the verifier learns from, as batches of static layout: pictures, tokens, maps.

Three kinds of rows. `look`: a picture and the list of its objects, no more (stage 0, which
stands in for Qwen's pre-training). `text`: no picture; the list is given and the comparison
with the caption is learned, the regions that it finds at fault and the alignment, which is
a skill of text alone and cheap to train there.
`judge`: picture, whole reply and both maps, some of them in answer-only mode.

Pictures are renders with planted flaws, or a generator's own samples labelled by the oracle,
whose unknown fields are left out of the loss.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import IterableDataset

from tts_verifier.errors import InputError
from tts_verifier.shapes.artifacts import ARTIFACT_KINDS, plant_artifacts
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import (
    SCORE_NAMES,
    FlawedImages,
    misaligned_scenes,
    render_flawed,
    scene_things,
    score_columns,
)
from tts_verifier.shapes.grammar import Spec, parse_caption, phrase, variants
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.shapes.readers.oracle import find_things
from tts_verifier.shapes.renderer import coverage, visible
from tts_verifier.shapes.scene import Scenes
from tts_verifier.shapes.vocabulary import SIZE
from tts_verifier.training.miniature.verifier import replies
from tts_verifier.training.verifier.sft_loss import IGNORED
from tts_verifier.verifiers.imagedoctor.model.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.text.instruction import Words

Stage = Literal["look", "text", "judge"]
ROUND: Final = 8
"""Rows of a batch without a fixed length are padded to a multiple of this."""
NOTHING: Final = -1
UNKNOWN: Final = -2
REACH: Final = 32.0
LEAST_SHARE: Final = 0.03
"""Share of a cell that an object must cover to be what the cell shows."""
UNRELATED: Final = 0.75
"""Share of `look` rows with a caption of another picture, lest it be read instead."""
WRITTEN: Final = 3
"""Parts of the answer that text rows learn: the alignment's words, number and location."""
SCORED_BY_ORACLE: Final = frozenset({"semantic_alignment"})


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B rows.

    `pixels`: uint8 (B, 3, 128, 128), sRGB; None in text rows. `ids`, `labels`: int64 (B, T),
    padded on the right, labels -100 where nothing is learned. `maps`: uint8 (B, 2, 128, 128),
    255 = flawed, misalignment then artifact. `known`: bool (B, 2), which maps have a truth.
    `cells`: float32 (B, cells, 5), in look rows: what each merged cell shows most of, by
    index of colour and shape (NOTHING, or UNKNOWN), the way to its centre (x, y) and its
    radius in units of `REACH` pixels.
    """

    ids: Tensor
    labels: Tensor
    pixels: Tensor | None = None
    maps: Tensor | None = None
    known: Tensor | None = None
    cells: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Returns what there is, in order: 2 tensors of text, 4 of look, 5 of judge rows."""
        parts = (self.ids, self.labels, self.pixels, self.maps, self.known, self.cells)
        return [part for part in parts if part is not None]

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Batch:
        """The inverse of `tensors`."""
        if len(parts) == 4:
            ids, labels, pixels, cells = parts
            return cls(ids, labels, pixels, cells=cells)
        return cls(*parts)

    def pin_memory(self) -> Batch:
        """Makes copies that a GPU fetches by itself; a DataLoader calls this."""
        return self.of([part.pin_memory() for part in self.tensors()])

    def to(self, device: torch.device) -> Batch:
        """Moves everything, without waiting."""
        return self.of([part.to(device, non_blocking=True) for part in self.tensors()])


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A generator's pictures: uint8 (N, 128, 128, 3), and the captions they were drawn for."""

    images: np.ndarray
    captions: list[str]

    @classmethod
    def read(cls, folder: Path) -> Samples:
        """Reads every *.npz of a folder, each with `images` and `captions`.

        Raises:
            InputError: there is none.
        """
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise InputError(f"{folder} must hold *.npz files with 'images' and 'captions'.")
        parts = [np.load(path) for path in files]
        images = np.concatenate([part["images"] for part in parts])
        return cls(images, [str(c) for part in parts for c in part["captions"]])

    def share(self, number: int, of: int) -> Samples:
        """Returns every `of`-th picture: a worker's own, so that each is read only once."""
        return Samples(self.images[number::of], self.captions[number::of])


class Writer:
    """Turns what is known of a picture into token ids and labels.

    `side`: merged cells of a picture along a side.
    """

    def __init__(
        self, words: Words, config: ImageDoctorConfig, side: int, *, answer_only: float
    ) -> None:
        self.words = words
        self.side = side
        self.answer_only = answer_only
        self.special = {
            "<|misalignment|>": config.misalignment_token_id,
            "<|artifact|>": config.artifact_token_id,
        }

    def row(self, stage: Stage, caption: str, spec: Spec, truth: Truth, *, brief: bool) -> Row:
        """Writes one row; `brief`: in answer-only mode."""
        control = self.words.control
        cells = 0 if stage == "text" else self.side**2
        ids = self.words.prompt(caption, cells=cells, reasoning=not brief)
        if stage == "text":
            ids = [i for i in ids if i not in (control.vision_start, control.vision_end)]
        labels = [IGNORED] * len(ids)
        for text, learned in _parts(stage, spec, truth, brief=brief):
            coded = self._encode(text)
            ids += coded
            labels += coded if learned else [IGNORED] * len(coded)
        end = [control.im_end] if stage == "judge" else []
        return Row(ids + end, labels + end)

    def _encode(self, text: str) -> list[int]:
        """Encodes a reply, in which the two heatmap tokens are special."""
        for name, number in self.special.items():
            before, found, after = text.partition(name)
            if found:
                return [*self._encode(before), number, *self._encode(after)]
        return self.words.encode(text) if text else []


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of a picture: NaN scores and an absent artifact's map count as unknown."""

    reading: Reading
    scores: dict[str, float]
    artifact: tuple[float, float, float, float] | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids and their labels."""

    ids: list[int]
    labels: list[int]


class Maker:
    """Makes batches for one stage; the same seed gives the same batches.

    `easy`: how many of the next batches show one object each, 0 until set: seeing starts there.
    """

    def __init__(
        self,
        writer: Writer,
        stage: Stage,
        *,
        seed: int,
        length: int | None = None,
        samples: Samples | None = None,
    ) -> None:
        self.writer = writer
        self.stage: Stage = stage
        self.length = length
        self.samples = samples
        self.easy = 0
        self._found: dict[int, list[Thing]] = {}
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, count: int) -> Batch:
        """Makes `count` rows; every second batch of pictures is of samples, if there are any."""
        if self.stage == "text":
            return self._texts(count)
        if self.samples is not None and self.rng.random() < 0.5:
            return self._sampled(self.samples, count)
        specs = random_specs(count, self.rng, split="train")
        if self.easy > 0:
            self.easy -= 1
            lone = [replace(spec, nouns=spec.nouns[:1], count=1, relation=None) for spec in specs]
            return self._rendered(render_flawed(lone, self.generator, misalignment=0, artifact=0))
        return self._rendered(render_flawed(specs, self.generator))

    def _texts(self, count: int) -> Batch:
        specs = random_specs(count, self.rng, split="train")
        scenes = misaligned_scenes(specs, self.generator, share=0.5)
        reach = 0.9 * scenes.radius[..., None]
        around = torch.cat([scenes.centre - reach, scenes.centre + reach], -1)
        seen = scene_things(scenes, around.clamp(0, SIZE))
        readings = [compare(s, t) for s, t in zip(specs, seen, strict=True)]
        unknown = dict.fromkeys(SCORE_NAMES, float("nan"))
        truths = [Truth(r, unknown | {"semantic_alignment": r.score}) for r in readings]
        return self._stacked(specs, truths)

    def _rendered(self, flawed: FlawedImages) -> Batch:
        planted = flawed.artifacts
        truths = _truths(flawed.readings, flawed.scores, planted.box, planted.kind)
        batch = replace(self._stacked(flawed.specs, truths), pixels=_bytes(flawed.images))
        if self.stage == "look":
            return replace(batch, cells=seen_in_cells(flawed.scenes, self.writer.side))
        maps = torch.stack([flawed.misalignment, planted.map], 1)
        known = torch.ones(len(maps), 2, dtype=torch.bool)
        return replace(batch, maps=_bytes(maps), known=known)

    def _sampled(self, samples: Samples, count: int) -> Batch:
        """Half of them with a planted artifact, whose map is then the truth."""
        index = [self.rng.randrange(len(samples.captions)) for _ in range(count)]
        specs = [self._asked(samples.captions[i]) for i in index]
        clean = samples.images[index]
        readings = [
            compare(spec, self._things(samples, i)) for i, spec in zip(index, specs, strict=True)
        ]
        images = torch.from_numpy(clean).permute(0, 3, 1, 2).float() / 255
        planted = plant_artifacts(images, self.generator, share=0.5)
        alignment = torch.tensor([r.score for r in readings])
        scores = score_columns(alignment, planted)
        scores[:, [SCORE_NAMES.index(n) for n in SCORE_NAMES if n not in SCORED_BY_ORACLE]] = (
            torch.nan
        )
        truths = _truths(readings, scores, planted.box, planted.kind)
        batch = replace(self._stacked(specs, truths), pixels=_bytes(planted.images))
        if self.stage == "look":
            return replace(batch, cells=torch.full((count, self.writer.side**2, 5), UNKNOWN * 1.0))
        wrong = torch.from_numpy(np.stack([r.misalignment for r in readings]))
        maps = torch.stack([wrong, planted.map], 1)
        known = torch.stack([torch.ones(count, dtype=torch.bool), planted.kind >= 0], 1)
        return replace(batch, maps=_bytes(maps), known=known)

    def _things(self, samples: Samples, index: int) -> list[Thing]:
        """Reads a sample with the oracle, once."""
        if index not in self._found:
            self._found[index] = find_things(samples.images[index])
        return self._found[index]

    def _asked(self, caption: str) -> Spec:
        """Now and then holds a sample against another caption, lest captions tell scores."""
        if self.rng.random() < 0.2:
            return random_specs(1, self.rng, split="train")[0]
        return parse_caption(caption)

    def _stacked(self, specs: Sequence[Spec], truths: Sequence[Truth]) -> Batch:
        rows = []
        for spec, truth in zip(specs, truths, strict=True):
            if self.stage == "look" and self.rng.random() < UNRELATED:
                spec = random_specs(1, self.rng, split="train")[0]
            caption = phrase(spec, self.rng.randrange(variants(spec)))
            brief = self.stage == "judge" and self.rng.random() < self.writer.answer_only
            rows.append(self.writer.row(self.stage, caption, spec, truth, brief=brief))
        longest = max(len(row.ids) for row in rows)
        length = self.length or -(-longest // ROUND) * ROUND
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        for i, row in enumerate(rows):
            used = min(len(row.ids), length)
            ids[i, :used] = torch.tensor(row.ids[:used])
            labels[i, :used] = torch.tensor(row.labels[:used])
        return Batch(ids, labels)


class Stream(IterableDataset[Batch]):
    """An endless stream of batches, for a DataLoader with workers or without."""

    def __init__(self, maker: Maker, count: int, seed: int) -> None:
        self.maker = maker
        self.count = count
        self.seed = seed

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        seed = self.seed + (info.id + 1 if info else 0)
        self.maker.rng.seed(seed)
        self.maker.generator.manual_seed(seed)
        if info and self.maker.samples is not None:
            self.maker.samples = self.maker.samples.share(info.id, info.num_workers)
        while True:
            yield self.maker.batch(self.count)


def _parts(stage: Stage, spec: Spec, truth: Truth, *, brief: bool) -> list[tuple[str, bool]]:
    """Returns the reply in parts, each learned or only given."""
    reading = truth.reading
    seen = replies.look(reading.things)
    if stage == "look":
        return [(seen + replies.CHECKS, True)]
    answer = replies.answer_parts(truth.scores)
    if stage == "text":
        rest = replies.reasons(spec, reading, replies.faults(reading)).removeprefix(seen)
        return [(seen, False), (rest + replies.ANSWER, True), *answer[:WRITTEN]]
    if brief:
        return answer
    found = replies.faults(reading, truth.artifact, truth.kind)
    return [(replies.reasons(spec, reading, found) + replies.ANSWER, True), *answer]


def _truths(readings: Sequence[Reading], scores: Tensor, box: Tensor, kind: Tensor) -> list[Truth]:
    found = []
    rows = zip(readings, scores.tolist(), box.tolist(), kind.tolist(), strict=True)
    for reading, values, (x1, y1, x2, y2), number in rows:
        named = dict(zip(SCORE_NAMES, values, strict=True))
        if number < 0:
            found.append(Truth(reading, named))
        else:
            found.append(Truth(reading, named, (x1, y1, x2, y2), ARTIFACT_KINDS[number]))
    return found


def seen_in_cells(scenes: Scenes, side: int) -> Tensor:
    """Says what each of side x side cells shows most of, as `Batch.cells`."""
    shares = adaptive_avg_pool2d(visible(coverage(scenes)), side).flatten(2)
    share, slot = shares.max(1)
    middle = (torch.arange(side, device=share.device) + 0.5) * SIZE / side
    rows, columns = torch.meshgrid(middle, middle, indexing="ij")
    centre = scenes.centre.gather(1, slot[..., None].expand(-1, -1, 2))
    way = (centre - torch.stack([columns.flatten(), rows.flatten()], -1)) / REACH
    kinds = torch.stack([scenes.colour.gather(1, slot), scenes.shape.gather(1, slot)], -1)
    kinds = torch.where((share > LEAST_SHARE)[..., None], kinds, NOTHING)
    radius = scenes.radius.gather(1, slot) / REACH
    return torch.cat([kinds.float(), way, radius[..., None]], -1)


def _bytes(values: Tensor) -> Tensor:
    """[0, 1] -> 0 to 255."""
    return (values * 255).round().clamp(0, 255).byte()
