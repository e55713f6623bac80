"""The verifier's training data, as batches of static layout: images, tokens, maps.

Images are renders with planted flaws, or a generator's own samples that the oracle labels. Labels
that the oracle cannot give are left out of the loss.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import IterableDataset

from tts_verifier.errors import InputError
from tts_verifier.shapes.artifacts import ARTIFACT_KINDS, plant_artifacts
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import (
    FlawedImages,
    misaligned_scenes,
    render_flawed,
    scene_things,
    score_columns,
)
from tts_verifier.shapes.grammar import Spec, parse_caption, random_phrase
from tts_verifier.shapes.readers.constraints import Reading, Thing, compare
from tts_verifier.shapes.readers.oracle import find_things
from tts_verifier.shapes.renderer import coverage, to_uint8, visible
from tts_verifier.shapes.scene import Scenes
from tts_verifier.shapes.vocabulary import SIZE
from tts_verifier.training.miniature.verifier.rows import (
    CHECKS,
    RowKind,
    RowWriter,
    Truth,
    check_targets,
)
from tts_verifier.training.verifier.sft_loss import IGNORED
from tts_verifier.training.verifier.token_rows import TokenRow
from tts_verifier.types.score_names import SCORE_NAMES

LENGTH_STEP: Final = 8
"""Rows of a batch without a fixed length are padded to a multiple of this."""
EMPTY_CELL: Final = -1
"""Probe target of a merged token that shows background."""
UNKNOWN_CELL: Final = -2
"""Probe target of a merged token of a sample: what such a token shows is not known exactly."""
OFFSET_SCALE: Final = 32.0
"""Number of pixels that make one unit of the probe's offsets and radii."""
MIN_CELL_SHARE: Final = 0.03
"""Share of a merged token that an object must cover to be its probe target."""
UNRELATED_SHARE: Final = 0.75
"""Share of perception rows with the caption of another image.

With the image's own caption the model could read the objects from the caption instead.
"""
OTHER_CAPTION_SHARE: Final = 0.2
"""Share of samples that are compared with another caption than their own.

Otherwise the caption alone would say much about the score.
"""
ORACLE_SCORES: Final = frozenset({"semantic_alignment"})
"""The scores of a sample that the oracle can determine."""


class TextRows(NamedTuple):
    """B rows without an image."""

    ids: Tensor
    """int64 (B, T), token ids, padded on the right."""
    labels: Tensor
    """int64 (B, T), the ids where a token is learned, -100 elsewhere."""


class PerceptionRows(NamedTuple):
    """B rows of the perception stage."""

    ids: Tensor
    """As in `TextRows`."""
    labels: Tensor
    """As in `TextRows`."""
    pixels: Tensor
    """uint8 (B, 3, 128, 128), sRGB."""
    cells: Tensor
    """float32 (B, merged tokens, 5), the object that covers most of each merged token.

    The columns are the index of its colour and that of its shape (or EMPTY_CELL, or UNKNOWN_CELL),
    the offset (x, y) to its centre, and its radius, in units of `OFFSET_SCALE` pixels.
    """


class ColdStartRows(NamedTuple):
    """B rows of the cold start."""

    ids: Tensor
    """As in `TextRows`."""
    labels: Tensor
    """As in `TextRows`."""
    pixels: Tensor
    """uint8 (B, 3, 128, 128), sRGB."""
    maps: Tensor
    """uint8 (B, 2, 128, 128), 255 = flawed, misalignment then artifact."""
    known: Tensor
    """bool (B, 2), whether the truth of each map is known."""
    checks: Tensor
    """int64 (B, `CHECKS`), see `rows.check_targets`; all `IGNORED` in rows with reasons."""


Rows = TextRows | PerceptionRows | ColdStartRows


@dataclass(frozen=True, slots=True, eq=False)
class GeneratorSamples:
    """Images that a generator made."""

    images: np.ndarray
    """uint8 (N, 128, 128, 3), sRGB."""
    captions: list[str]
    """The caption of each image."""

    @classmethod
    def read(cls, folder: Path) -> GeneratorSamples:
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

    def share(self, worker: int, workers: int) -> GeneratorSamples:
        """Returns every `workers`-th sample, so that the oracle reads each in one worker only."""
        return GeneratorSamples(self.images[worker::workers], self.captions[worker::workers])


class BatchMaker:
    """Makes batches of one kind of rows; the same seed gives the same batches.

    Not safe to share between threads.

    Args:
        writer: makes the tokens.
        kind: of rows.
        seed: decides everything.
        length: tokens that rows are padded or cut to; None = the longest row of the batch.
        samples: a generator's images, which are used besides renders; None = renders only.
        sample_share: share of batches that consist of samples, if there are any.
        answer_only_share: share of cold-start rows in answer-only mode.

    Attributes:
        single_object_batches: number of the next batches that show one object each; perception
            starts with these.
    """

    def __init__(
        self,
        writer: RowWriter,
        kind: RowKind,
        *,
        seed: int,
        length: int | None = None,
        samples: GeneratorSamples | None = None,
        sample_share: float = 0.5,
        answer_only_share: float = 0.15,
    ) -> None:
        self.writer = writer
        self.kind: RowKind = kind
        self.length = length
        self.samples = samples
        self.sample_share = sample_share
        self.answer_only_share = answer_only_share
        self.single_object_batches = 0
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self._things: dict[int, list[Thing]] = {}

    def batch(self, count: int) -> Rows:
        """Makes `count` rows."""
        if self.kind == "text":
            return self._text_rows(count)
        if self.samples is not None and self.rng.random() < self.sample_share:
            return self._sample_rows(self.samples, count)
        specs = random_specs(count, self.rng, split="train")
        if self.single_object_batches > 0:
            self.single_object_batches -= 1
            single = [replace(s, nouns=s.nouns[:1], count=1, relation=None) for s in specs]
            return self._render_rows(
                render_flawed(single, self.generator, misalignment=0, artifact=0)
            )
        return self._render_rows(render_flawed(specs, self.generator))

    def _text_rows(self, count: int) -> TextRows:
        specs = random_specs(count, self.rng, split="train")
        scenes = misaligned_scenes(specs, self.generator, share=0.5)
        # Nothing is rendered, so boxes are estimated: most objects extend to about 0.9 radii.
        reach = 0.9 * scenes.radius[..., None]
        boxes = torch.cat([scenes.centre - reach, scenes.centre + reach], -1).clamp(0, SIZE)
        things = scene_things(scenes, boxes)
        readings = [compare(s, t) for s, t in zip(specs, things, strict=True)]
        unknown = dict.fromkeys(SCORE_NAMES, float("nan"))
        truths = [Truth(r, unknown | {"semantic_alignment": r.score}) for r in readings]
        return TextRows(*self._tokens(specs, truths)[:2])

    def _render_rows(self, flawed: FlawedImages) -> Rows:
        planted = flawed.artifacts
        truths = _truths(flawed.readings, flawed.scores, planted.box, planted.kind)
        ids, labels, checks = self._tokens(flawed.specs, truths)
        pixels = to_uint8(flawed.images)
        if self.kind == "perception":
            return PerceptionRows(
                ids, labels, pixels, probe_targets(flawed.scenes, self.writer.side)
            )
        maps = torch.stack([flawed.misalignment, planted.map], 1)
        known = torch.ones(len(maps), 2, dtype=torch.bool)
        return ColdStartRows(ids, labels, pixels, to_uint8(maps), known, checks)

    def _sample_rows(self, samples: GeneratorSamples, count: int) -> Rows:
        """Makes rows of samples, half of them with a planted artifact, whose map is the truth."""
        index = [self.rng.randrange(len(samples.captions)) for _ in range(count)]
        specs = [self._spec_for(samples.captions[i]) for i in index]
        readings = [
            compare(spec, self._things_in(samples, i)) for i, spec in zip(index, specs, strict=True)
        ]
        images = torch.from_numpy(samples.images[index]).permute(0, 3, 1, 2).float() / 255
        planted = plant_artifacts(images, self.generator, share=0.5)
        # A sample may have flaws of its own, which the formulas of the other scores do not see.
        scores = score_columns(torch.tensor([r.score for r in readings]), planted)
        scores[:, [SCORE_NAMES.index(n) for n in SCORE_NAMES if n not in ORACLE_SCORES]] = torch.nan
        truths = _truths(readings, scores, planted.box, planted.kind)
        ids, labels, checks = self._tokens(specs, truths)
        pixels = to_uint8(planted.images)
        if self.kind == "perception":
            unknown = torch.full((count, self.writer.side**2, 5), float(UNKNOWN_CELL))
            return PerceptionRows(ids, labels, pixels, unknown)
        misalignment = torch.from_numpy(np.stack([r.misalignment for r in readings]))
        maps = torch.stack([misalignment, planted.map], 1)
        # A sample may have artifacts of its own, so its map is only known where one was planted.
        known = torch.stack([torch.ones(count, dtype=torch.bool), planted.kind >= 0], 1)
        return ColdStartRows(ids, labels, pixels, to_uint8(maps), known, checks)

    def _things_in(self, samples: GeneratorSamples, index: int) -> list[Thing]:
        """Returns the things of a sample, which the oracle reads at its first use."""
        if index not in self._things:
            self._things[index] = find_things(samples.images[index])
        return self._things[index]

    def _spec_for(self, caption: str) -> Spec:
        """Returns the spec that a sample is compared with, sometimes an unrelated one."""
        if self.rng.random() < OTHER_CAPTION_SHARE:
            return random_specs(1, self.rng, split="train")[0]
        return parse_caption(caption)

    def _tokens(
        self, specs: Sequence[Spec], truths: Sequence[Truth]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Writes rows and pads them: ids and labels, int64 (B, T), and checks (B, `CHECKS`)."""
        rows: list[TokenRow] = []
        checks = torch.full((len(specs), CHECKS), IGNORED)
        for spec, truth in zip(specs, truths, strict=True):
            if self.kind == "perception" and self.rng.random() < UNRELATED_SHARE:
                spec = random_specs(1, self.rng, split="train")[0]
            caption = random_phrase(spec, self.rng)
            answer_only = self.kind == "cold-start" and self.rng.random() < self.answer_only_share
            if answer_only:
                checks[len(rows)] = torch.tensor(check_targets(spec, truth.reading))
            rows.append(self.writer.row(self.kind, caption, spec, truth, answer_only=answer_only))
        longest = max(len(row.ids) for row in rows)
        length = self.length or -(-longest // LENGTH_STEP) * LENGTH_STEP
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        for i, row in enumerate(rows):
            fitting = min(len(row.ids), length)
            ids[i, :fitting] = torch.tensor(row.ids[:fitting])
            labels[i, :fitting] = torch.tensor(row.labels[:fitting])
        return ids, labels, checks


class BatchStream(IterableDataset[Rows]):
    """An endless stream of batches, for a DataLoader with or without workers.

    Args:
        maker: makes the batches; each worker has its own copy, its own seed and its own share
            of the samples.
        count: number of rows in a batch.
        seed: decides the batches, together with the number of the worker.
    """

    def __init__(self, maker: BatchMaker, count: int, seed: int) -> None:
        self.maker = maker
        self.count = count
        self.seed = seed

    def __iter__(self) -> Iterator[Rows]:
        worker = torch.utils.data.get_worker_info()
        seed = self.seed + (worker.id + 1 if worker else 0)
        self.maker.rng.seed(seed)
        self.maker.generator.manual_seed(seed)
        if worker and self.maker.samples is not None:
            self.maker.samples = self.maker.samples.share(worker.id, worker.num_workers)
        while True:
            yield self.maker.batch(self.count)


def _truths(readings: Sequence[Reading], scores: Tensor, box: Tensor, kind: Tensor) -> list[Truth]:
    truths = []
    columns = zip(readings, scores.tolist(), box.tolist(), kind.tolist(), strict=True)
    for reading, values, (x1, y1, x2, y2), artifact_kind in columns:
        by_name = dict(zip(SCORE_NAMES, values, strict=True))
        if artifact_kind < 0:
            truths.append(Truth(reading, by_name))
        else:
            truths.append(Truth(reading, by_name, (x1, y1, x2, y2), ARTIFACT_KINDS[artifact_kind]))
    return truths


def probe_targets(scenes: Scenes, side: int) -> Tensor:
    """Says what each of side x side merged tokens shows most of, as `PerceptionRows.cells`."""
    shares = adaptive_avg_pool2d(visible(coverage(scenes)), side).flatten(2)
    share, slot = shares.max(1)
    middle = (torch.arange(side, device=share.device) + 0.5) * SIZE / side
    rows, columns = torch.meshgrid(middle, middle, indexing="ij")
    centre = scenes.centre.gather(1, slot[..., None].expand(-1, -1, 2))
    offset = (centre - torch.stack([columns.flatten(), rows.flatten()], -1)) / OFFSET_SCALE
    labels = torch.stack([scenes.colour.gather(1, slot), scenes.shape.gather(1, slot)], -1)
    labels = torch.where((share > MIN_CELL_SHARE)[..., None], labels, EMPTY_CELL)
    radius = scenes.radius.gather(1, slot) / OFFSET_SCALE
    return torch.cat([labels.float(), offset, radius[..., None]], -1)
