"""Trains the bundled verifier, stage by stage.

    train='python -m tts_verifier.training.miniature.verifier.train'
    $train --config cpu --stage perception --out DIR --minutes 10
    $train --config cpu --stage cold-start --init DIR --out DIR2 …
    $train --stage export --init DIR2 --out FOLDER

Every stage reads one checkpoint folder (weights, config, tokenizer, processor) and writes one.
Without --init the model starts from random weights; with the folder of a 3 B model, that model is
trained. `perception` takes the place of pre-training. `cold-start` is the paper's supervised stage
with both heatmaps; with --samples it also trains on a folder of the generator's images. So that one
set of weights also answers without reasons, give such rows a share and a loss of their own:

    $train --config gpu --stage cold-start … --answer-only-share 0.5 --answer-weight 1
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch
from torch.utils.data import DataLoader

from tts_verifier.training.common import (
    NamedLosses,
    Periodic,
    ReplayPool,
    WeightAverage,
    learning_rate,
    train_for,
)
from tts_verifier.training.miniature.verifier.checkpoint import (
    read_checkpoint,
    write_checkpoint,
    write_random_checkpoint,
)
from tts_verifier.training.miniature.verifier.checks import check_replies, held_out_images
from tts_verifier.training.miniature.verifier.config import (
    VERIFIER_PRESETS,
    RowLengths,
    VerifierTraining,
)
from tts_verifier.training.miniature.verifier.data import (
    BatchMaker,
    BatchStream,
    ColdStartRows,
    GeneratorSamples,
    PerceptionRows,
    Rows,
)
from tts_verifier.training.miniature.verifier.rows import RowKind, RowWriter
from tts_verifier.training.miniature.verifier.step import VerifierStep
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint, load_model
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

ROW_POOL_STEPS: Final = 128
"""Steps for which a row may be used again, if rows are reused at all."""
CHECK_IMAGES_SEED: Final = 1_000_003
"""Makes the held-out images of the checks."""
SEED_OFFSETS: Final[dict[RowKind, int]] = {"perception": 0, "text": 100, "cold-start": 200}
"""Added to the seed of a run, so that streams of different kinds never share a seed.

They are farther apart than the numbers of the workers, which are added too.
"""

TRAINING_OPTIONS: Final = ("answer_only_share", "answer_weight", "cold_start_learning_rate")
"""Fields of `VerifierTraining` that the command line can change."""

StageName = Literal["perception", "cold-start"]


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of training, from a folder to a folder."""

    stage: StageName
    """The name of the stage."""
    init: Path
    """The folder of the checkpoint that it starts from."""
    out: Path
    """The folder that it writes its checkpoint to."""
    minutes: float
    """How long it trains."""
    seed: int
    """Decides the data."""
    samples: Path | None
    """A folder of the generator's images; None = renders only."""


def stream_rows(
    run: StageRun, kind: RowKind, writer: RowWriter, training: VerifierTraining
) -> Iterator[Rows]:
    """Streams new rows without end. Worker processes, if there are any, start at once."""
    samples = GeneratorSamples.read(run.samples) if run.samples and kind != "text" else None
    seed = run.seed + SEED_OFFSETS[kind]
    count = (training.text_batch if kind == "text" else training.batch) // training.reuse
    # Text rows need no rendering: a quarter of the workers keeps up.
    workers = -(-training.workers // 4) if kind == "text" else training.workers
    length = row_length(training.lengths, kind) if training.lengths else None
    maker = BatchMaker(
        writer,
        kind,
        seed=seed,
        length=length,
        samples=samples,
        answer_only_share=training.answer_only_share,
    )
    if kind == "perception":
        # Every worker counts its own batches, so each makes its share of them.
        maker.single_object_batches = training.single_object_rows // count // max(workers, 1)
    loader = DataLoader(
        BatchStream(maker, count, seed),
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_use_one_thread if workers else None,
    )
    return iter(loader)


def row_length(lengths: RowLengths, kind: RowKind) -> int:
    """Returns the fixed length of rows of a kind, in tokens."""
    by_kind = {
        "perception": lengths.perception,
        "text": lengths.text,
        "cold-start": lengths.cold_start,
    }
    return by_kind[kind]


def reuse_rows(
    new: Iterator[Rows], reuse: int, device: torch.device, *, seed: int
) -> Iterator[Rows]:
    """Moves rows to the device and yields batches of `reuse` times as many.

    With `reuse` above 1, a batch is sampled from the pool of the newest rows: each row is used
    `reuse` times on average.
    """
    pool: ReplayPool | None = None
    for rows in new:
        on_device = tuple(column.to(device, non_blocking=True) for column in rows)
        if reuse == 1:
            yield type(rows)(*on_device)
            continue
        count = len(rows.ids)
        if pool is None:
            pool = ReplayPool(ROW_POOL_STEPS * count, torch.Generator(device).manual_seed(seed))
        pool.add(*on_device)
        yield type(rows)(*pool.sample(reuse * count))


def _use_one_thread(_: int) -> None:
    # The processes are the parallelism: threads of all of them would compete for the cores.
    torch.set_num_threads(1)


class VerifierTrainer:
    """Runs one stage, from a folder to a folder. Not safe to share between threads."""

    def __init__(self, run: StageRun, training: VerifierTraining) -> None:
        self.run, self.training = run, training
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.checkpoint = c = read_checkpoint(run.init)
        writer = RowWriter(
            c.tokenizer, c.model.config, c.processor.input_size // c.model.config.merged_patch_size
        )
        images = stream_rows(run, run.stage, writer, training)
        texts = stream_rows(run, "text", writer, training) if training.text_batch else None
        self.held_out = held_out_images(training.check_images, CHECK_IMAGES_SEED)
        # The worker processes have been forked by now. Forking a process that already uses a
        # GPU fails, so nothing may move to the device before this line.
        c.model.to(device)
        self._images = reuse_rows(images, training.reuse, device, seed=run.seed)
        self._texts = None
        if texts is not None:
            self._texts = reuse_rows(texts, training.reuse, device, seed=run.seed + 1)
        cold_start = run.stage == "cold-start"
        self._peak = training.cold_start_learning_rate if cold_start else training.learning_rate
        self.average = WeightAverage(c.model, training.ema_decay)
        self.step = VerifierStep(
            c.model,
            c.processor,
            rows=ColdStartRows if cold_start else PerceptionRows,
            heatmap_rows=training.heatmap_rows,
            answer_weight=training.answer_weight if cold_start else 0.0,
        )

    def train(self) -> None:
        """Trains until the time is up, saving and checking on the way and at the end."""
        save = Periodic(60 * self.training.save_minutes, self.save)
        check = Periodic(60 * self.training.check_minutes, self.check)
        train_for(
            self.run.minutes,
            self._step,
            print_seconds=self.training.print_seconds,
            periodic=[save, check],
        )

    def _step(self, progress: float) -> NamedLosses:
        self.step.set_learning_rate(learning_rate(self._peak, progress))
        texts = None if self._texts is None else next(self._texts)
        losses = self.step(next(self._images), texts)
        self.average.update()
        return losses

    def save(self) -> None:
        """Writes a checkpoint of the averaged weights."""
        write_checkpoint(self._averaged_model(), self.run.init, self.run.out)

    def check(self) -> None:
        """Prints the figures of `check_replies` for the averaged weights."""
        c = self.checkpoint
        averaged = Checkpoint(self._averaged_model(), c.tokenizer, c.processor, c.limits)
        figures = check_replies(averaged, self.held_out)
        listed = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"  replies: {listed}", flush=True)

    def _averaged_model(self) -> ImageDoctorModel:
        model = self.average.model
        if not isinstance(model, ImageDoctorModel):
            raise TypeError("the average of a model has the model's own type")
        return model


def verifier_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", choices=VERIFIER_PRESETS, default="cpu")
    stages = ("perception", "cold-start", "export")
    parser.add_argument("--stage", choices=stages, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    for option in TRAINING_OPTIONS:
        parser.add_argument(
            f"--{option.replace('_', '-')}", type=float, help="of the preset if absent"
        )
    return parser.parse_args()


def main() -> None:
    """Runs the command line."""
    options = verifier_options()
    torch.set_num_threads(options.threads)
    preset = VERIFIER_PRESETS[options.config]
    init = options.init or options.out
    if options.init is None:
        write_random_checkpoint(init, preset.sizes, seed=options.seed)
    if options.stage == "export":
        write_checkpoint(load_model(init), init, options.out, torch.float16)
        return
    run = StageRun(options.stage, init, options.out, options.minutes, options.seed, options.samples)
    given = {n: v for n in TRAINING_OPTIONS if (v := getattr(options, n)) is not None}
    VerifierTrainer(run, replace(preset.training, **given)).train()


if __name__ == "__main__":
    main()
