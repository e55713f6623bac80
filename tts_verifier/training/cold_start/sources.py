"""Where the rows of a step come from. A block is a pure function of seed, step and number.

So a run that goes on sees the same rows, whatever the number of workers, and with blocks of a given
size also whatever the number of processes.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch.utils.data import Dataset

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.identity import seed_for
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.training.cold_start.batches import RowBlock, UnpaddedRow, collate, make_block
from tts_verifier.training.miniature.verifier.data import (
    BatchMaker,
    ColdStartRows,
    GeneratorSamples,
)
from tts_verifier.training.miniature.verifier.rows import RowWriter
from tts_verifier.training.miniature.verifier.target_replies import (
    faulty_regions,
    reasoning_text,
)
from tts_verifier.training.richhf.dataset import (
    read_prompts_by_uid,
    read_split,
    read_texts,
)
from tts_verifier.training.richhf.fields import uid_of
from tts_verifier.training.richhf.miniature import CONFIG_FILE, read_truths
from tts_verifier.training.richhf.prepared import PreparedPictures, map_size, resize_maps
from tts_verifier.training.verifier.answers import ANSWER_START, answer_parts
from tts_verifier.training.verifier.sft_loss import IGNORED
from tts_verifier.training.verifier.token_rows import conversation_row
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint


class RowSource(Protocol):
    """Makes blocks of rows."""

    def block(self, step: int, number: int) -> RowBlock:
        """Makes the block of this number in a step."""
        ...


class MiniatureSource:
    """Endless new pictures of the miniature world, with the exact truth.

    Args:
        checkpoint: that is trained.
        rows: of a block.
        map_rows: rows of a block that train the heatmaps.
        answer_only_share: share of rows without reasons.
        seed: decides the rows.
        samples: a folder of the generator's samples, which make half of the blocks; None = renders.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        rows: int,
        map_rows: int,
        answer_only_share: float,
        seed: int,
        samples: Path | None = None,
    ) -> None:
        config = checkpoint.model.config
        side = checkpoint.processor.grid[0] // checkpoint.processor.merge_size
        writer = RowWriter(checkpoint.tokenizer, config, side)
        self._maker = BatchMaker(
            writer,
            "cold-start",
            seed=seed,
            samples=GeneratorSamples.read(samples) if samples else None,
            answer_only_share=answer_only_share,
        )
        self._rows, self._map_rows, self._seed = rows, map_rows, seed
        self._tokens = (config.misalignment_token_id, config.artifact_token_id)
        self._map_size = map_size(checkpoint.processor)

    def block(self, step: int, number: int) -> RowBlock:
        """Makes the block of this number in a step."""
        seed = seed_for(self._seed, str(number), step, "cold start")
        self._maker.rng.seed(seed)
        self._maker.generator.manual_seed(seed)
        made = self._maker.batch(self._rows)
        if not isinstance(made, ColdStartRows):
            raise TypeError("a maker of cold-start rows makes cold-start rows")
        alone = (made.checks != IGNORED).any(1)
        maps = resize_maps(made.maps[: self._map_rows], self._map_size)
        known = made.known[: self._map_rows]
        return make_block(made.ids, made.labels, alone, made.pixels, maps, known, self._tokens)


class RatedSource:
    """The rated pictures of RichHF-18K or of its miniature, in a new order in every epoch.

    Args:
        checkpoint: that is trained.
        data: the folder, see `richhf.dataset`.
        split: of the folder.
        reasons: uid -> the reasons of a reply, from <think> up to </think>, which it lacks; a
            picture without is answered alone.
        rows: of a block.
        blocks: of a step.
        map_rows: rows of a block that train the heatmaps.
        answer_only_share: share of rows without reasons among those that have some.
        seed: decides the order, and which rows have no reasons.
        in_memory: decodes every picture and map once, before the training, and keeps them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: Path,
        split: str,
        reasons: Mapping[str, str],
        *,
        rows: int,
        blocks: int,
        map_rows: int,
        answer_only_share: float,
        seed: int,
        in_memory: bool = False,
    ) -> None:
        pictures = read_split(data, split).pictures
        self._reasons, self._seed = reasons, seed
        self._rows, self._blocks, self._map_rows = rows, blocks, map_rows
        self._answer_only_share = answer_only_share
        self._tokenizer, self._processor = checkpoint.tokenizer, checkpoint.processor
        self._config = config = checkpoint.model.config
        self._tokens = (config.misalignment_token_id, config.artifact_token_id)
        self._pictures = PreparedPictures(
            pictures,
            self._processor,
            seed=seed,
            purpose="cold start",
            with_maps=map_rows > 0,
            in_memory=in_memory,
        )
        lacking = sum(uid_of(p.name) not in reasons for p in pictures)
        if reasons and lacking:
            warnings.warn(
                f"{lacking} of {len(pictures)} pictures have no reasons and are answered without.",
                RunWarning,
                stacklevel=2,
            )

    def block(self, step: int, number: int) -> RowBlock:
        """Makes the block of this number in a step."""
        first = (step * self._blocks + number) * self._rows
        rows = [
            self._row(place, i < self._map_rows)
            for i, place in enumerate(range(first, first + self._rows))
        ]
        return collate(rows, self._tokens, self._map_rows)

    def _row(self, place: int, with_maps: bool) -> UnpaddedRow:
        picture = self._pictures.at(place)
        reasons = self._reasons.get(uid_of(picture.name))
        rng = random.Random(seed_for(self._seed, "answer only", place, "cold start"))
        alone = reasons is None or rng.random() < self._answer_only_share
        reply = answer_parts(picture.scores)
        if reasons is not None and not alone:
            reply = [(reasons + ANSWER_START, True), *reply]
        tokens = conversation_row(
            self._tokenizer,
            self._config,
            picture.prompt,
            reply,
            image_tokens=self._processor.merged_tokens,
            reasoning=not alone,
        )
        pixels, maps = self._pictures.tensors(picture, with_maps=with_maps)
        return UnpaddedRow(tokens, alone, pixels, maps)


class BlockStream(Dataset[list[RowBlock]]):
    """One process' blocks by step, for a DataLoader.

    Args:
        source: makes the blocks.
        numbers: of the blocks of this process.
    """

    def __init__(self, source: RowSource, numbers: range) -> None:
        self.source, self.numbers = source, numbers

    def __getitem__(self, step: int) -> list[RowBlock]:
        return [self.source.block(step, number) for number in self.numbers]


def read_reasons(data: Path, split: str, path: Path | None) -> dict[str, str]:
    """Returns uid -> reasons, each from <think> up to </think>, which it lacks.

    Args:
        data: the folder of ratings. That of the miniature knows what its pictures show, and its
            reasons are written from that.
        split: of the folder.
        path: a JSONL file with a `filename` and a `reasons` in each row; None = those of `data`.

    Raises:
        InputError: there are none, or a row is not as it should be.
    """
    if path is not None:
        return _reasons_from_file(path)
    if not (data / CONFIG_FILE).exists():
        raise InputError(
            f"Stage 2 learns reasons, and {data} has none: RichHF-18K has ratings only. Give a "
            "JSONL file of a 'filename' and its 'reasons' in each row.",
            argument="reasons",
        )
    prompts = read_prompts_by_uid(data / "prompts")
    return {
        uid: reasoning_text(
            parse_caption(prompts[uid]),
            truth.reading,
            faulty_regions(truth.reading, truth.artifact, truth.kind),
        )
        for uid, truth in read_truths(data, split).items()
    }


def _reasons_from_file(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for name, text, place in read_texts(path, "reasons"):
            found[uid_of(name)] = f"<think>\n{_bare_reasons(text, place)}"
    except InputError as error:
        raise InputError(str(error), argument="reasons") from error
    return found


def _bare_reasons(text: str, place: str) -> str:
    """Returns reasons without the tags around them."""
    bare = text.strip().removeprefix("<think>").removesuffix("</think>").strip()
    if "<answer>" in bare or "</think>" in bare or not bare:
        raise InputError(
            f"{place}: reasons must be some text without an answer, got {bare[:80]!r}. The answer "
            "is written from the ratings."
        )
    return bare
