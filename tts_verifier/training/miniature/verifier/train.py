"""Trains the bundled verifier, stage by stage.

    train='python -m tts_verifier.training.miniature.verifier.train'
    $train --config cpu --stage look --out DIR --minutes 10
    $train --config cpu --stage judge --init DIR --out DIR2 …
    $train --stage export --init DIR2 --out FOLDER

Every stage starts from a checkpoint's folder alone (weights, config, tokenizer, processor)
and leaves one: without --init a model is made of random numbers, with the folder of a 3 B
model that is what is trained. `look` is stage 0, `judge` the paper's cold start with both
heatmaps; the latter takes --samples too, a folder of the generator's pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tts_verifier.training.common.loop import Average, rate
from tts_verifier.training.common.replay_pool import Pool
from tts_verifier.training.miniature.verifier import tokenizer
from tts_verifier.training.miniature.verifier.checks import check, held_out
from tts_verifier.training.miniature.verifier.config import CONFIGS, Sizes, Training
from tts_verifier.training.miniature.verifier.data import (
    Batch,
    Maker,
    Samples,
    Stage,
    Stream,
    Writer,
)
from tts_verifier.training.miniature.verifier.step import Step
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    Checkpoint,
    load_model,
    read_limits,
)
from tts_verifier.verifiers.imagedoctor.checkpoint.save import save_model
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

LIMITS: Final = {"max_new_tokens": 192, "repetition_penalty": 1.0, "do_sample": False}
PRINT_SECONDS: Final = 30.0
POOL: Final = 128
"""Steps for which a row may be learnt from again, if it is at all."""
HELD_OUT_SEED: Final = 1_000_003
SHOWN: Final = {
    "look": ("total", "text", "kinds", "places", "written"),
    "judge": ("total", "text", "artifact", "misalignment", "written"),
}
"""What a step's losses are, see `Step`."""
COPIED: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One stage: where it starts, where it leaves its checkpoint, how long, which data."""

    stage: Stage
    init: Path
    out: Path
    minutes: float
    seed: int
    samples: Path | None


def begin(folder: Path, sizes: Sizes, *, seed: int) -> None:
    """Writes a checkpoint of random weights."""
    tokenizer.save(folder)
    words = tokenizer.build()
    torch.manual_seed(seed)
    model = ImageDoctorModel(config_of(sizes, words))
    spread(model)
    order_numbers(model.model.embed_tokens.weight, words, seed)
    save_model(model, folder)
    Processor(input_size=sizes.input_size).save(folder)
    (folder / "generation_config.json").write_text(json.dumps(LIMITS), encoding="utf-8")


def config_of(sizes: Sizes, words: str) -> ImageDoctorConfig:
    """Returns the config of a model of these sizes and this tokenizer.json."""
    ids = tokenizer.ids_of(words)
    return ImageDoctorConfig.from_dict(sizes.config(ids, max(ids.values()) + 1))


def megabytes(sizes: Sizes) -> float:
    """Returns how large the weights are in float16, in MiB."""
    with torch.device("meta"):
        model = ImageDoctorModel(config_of(sizes, tokenizer.build()))
    return sum(p.numel() for p in model.parameters()) * 2 / 2**20


@torch.no_grad()
def spread(model: ImageDoctorModel) -> None:
    """Draws both towers' matrices so that signals keep their size at any width.

    transformers draws them with one deviation, 0.02, which suits wide models: narrow ones
    start so quiet that they spend half of a short training on growing. The biases of queries
    and keys turn with the position, so that random ones make attention depend on where a
    token stands from the start: this is how the cells of an image learn their places.
    """
    towers = {"visual.": model.config.vision["depth"], "model.": len(model.model.layers)}
    for name, weight in model.named_parameters():
        depth = next((d for start, d in towers.items() if name.startswith(start)), 0)
        if name.startswith("model.") and name.endswith(("q_proj.bias", "k_proj.bias")):
            weight.normal_()
        if not depth or weight.dim() < 2:
            continue
        if "embed_tokens" in name:
            weight.normal_(0, 0.08)
            continue
        ends = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight"))
        deviation = weight[0].numel() ** -0.5
        weight.normal_(0, deviation / (2 * depth) ** 0.5 if ends else deviation)


@torch.no_grad()
def order_numbers(embedding: Tensor, words: str, seed: int) -> None:
    """Gives numbers embeddings that vary smoothly with their value (random Fourier features).

    Near numbers then start alike, which is what a place measured in pixels needs.
    """
    generator = torch.Generator().manual_seed(seed)
    width = embedding.shape[1]
    scale = float(embedding.std()) * math.sqrt(2)
    turns = torch.randn(width, generator=generator) / 48
    phases = torch.rand(width, generator=generator) * 2 * math.pi
    for token, index in json.loads(words)["model"]["vocab"].items():
        digits = token.lstrip("Ġ,")
        if digits in tokenizer.COORDINATES:
            own = 0.3 * embedding[index]
            embedding[index] = own + scale * (turns * int(digits) + phases).cos()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a folder for training: float32 weights, on the CPU, that take gradients."""
    config = ImageDoctorConfig.from_folder(folder)
    model = load_model(folder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("point_embed" not in name and "mask_downscaling" not in name)
    words = PromptTokenizer.from_folder(folder, config)
    processor = Processor.from_folder(folder, config)
    return Checkpoint(model, words, processor, read_limits(folder, config))


def write_checkpoint(
    model: ImageDoctorModel, source: Path, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Writes a model with the small files of the folder that it came from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if source != folder and (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())
    save_model(model, folder, dtype=dtype)


def batches(run: Run, stage: Stage, writer: Writer, training: Training) -> Iterator[Batch]:
    """Streams new rows, made by worker processes beside the step if there are any."""
    samples = Samples.read(run.samples) if run.samples and stage != "text" else None
    seed = run.seed + {"look": 0, "text": 100, "judge": 200}[stage]
    count = (training.text_batch if stage == "text" else training.batch) // training.reuse
    workers = -(-training.workers // 4) if stage == "text" else training.workers
    length = getattr(training.lengths, stage) if training.lengths else None
    maker = Maker(writer, stage, seed=seed, length=length, samples=samples)
    if stage == "look":
        maker.easy = training.easy // count // max(workers, 1)
    loader = DataLoader(
        Stream(maker, count, seed),
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_alone if workers else None,
    )
    return iter(loader)


def pooled(new: Iterator[Batch], reuse: int, device: torch.device, *, seed: int) -> Iterator[Batch]:
    """Brings rows to the device and, with `reuse` above 1, yields that many batches of each."""
    if reuse == 1:
        yield from (batch.to(device) for batch in new)
    pool: Pool | None = None
    for batch in new:
        fresh = len(batch.ids)
        if pool is None:
            pool = Pool(POOL * fresh, torch.Generator(device).manual_seed(seed))
        pool.add(*batch.to(device).tensors())
        yield Batch.of(pool.draw(reuse * fresh))


def _alone(_: int) -> None:
    torch.set_num_threads(1)


class Trainer:
    """One stage of training, from a folder to a folder."""

    def __init__(self, run: Run, training: Training) -> None:
        self.run, self.training = run, training
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.checkpoint = c = read_checkpoint(run.init)
        side = c.processor.input_size // c.model.config.merged_patch_size
        writer = Writer(c.tokenizer, c.model.config, side, answer_only=training.answer_only)
        self.pictures = batches(run, run.stage, writer, training)
        self.texts = batches(run, "text", writer, training) if training.text_batch else None
        self.held = held_out(training.check_pictures, HELD_OUT_SEED)
        # Worker processes are forked by now: a fork with a GPU in use is asking for trouble.
        c.model.to(self.device)
        self.pictures = pooled(self.pictures, training.reuse, self.device, seed=run.seed)
        if self.texts is not None:
            self.texts = pooled(self.texts, training.reuse, self.device, seed=run.seed + 1)
        self.peak = training.judge_rate if run.stage == "judge" else training.learning_rate
        self.average = Average(c.model, training.ema)
        self.step = Step(c.model, c.processor, mapped=training.mapped)

    def train(self) -> None:
        """Runs until the time is up, saving and checking on the way and at the end."""
        began = printed = saved = checked = time.monotonic()
        total = torch.zeros(5, device=self.device)
        steps = since = 0
        while (now := time.monotonic()) - began < 60 * self.run.minutes:
            progress = (now - began) / (60 * self.run.minutes)
            self.step.at(rate(self.peak, progress))
            texts = None if self.texts is None else next(self.texts)
            total += self.step(next(self.pictures), texts)
            self.average.update()
            steps, since = steps + 1, since + 1
            if now - printed > PRINT_SECONDS:
                self._print(steps, now - began, total / since)
                printed, since, total = now, 0, torch.zeros_like(total)
            if now - saved > 60 * self.training.save_minutes:
                self.save()
                saved = now
            if now - checked > 60 * self.training.check_minutes:
                self.check()
                checked = time.monotonic()
        self.save()
        self.check()

    def save(self) -> None:
        """Leaves the averaged weights."""
        write_checkpoint(self._averaged(), self.run.init, self.run.out)

    def check(self) -> None:
        """Prints how the averaged weights fare on held-out pictures."""
        c = self.checkpoint
        done = check(Checkpoint(self._averaged(), c.tokenizer, c.processor, c.limits), self.held)
        print("  free:", ", ".join(f"{k} {v:.3f}" for k, v in done.items()), flush=True)

    def _averaged(self) -> ImageDoctorModel:
        model = self.average.model
        if not isinstance(model, ImageDoctorModel):
            raise TypeError("the average of a model is of its own kind")
        return model

    def _print(self, steps: int, seconds: float, mean: Tensor) -> None:
        pairs = zip(SHOWN[self.run.stage], mean.tolist(), strict=True)
        shown = ", ".join(f"{n} {v:.4f}" for n, v in pairs)
        print(f"{seconds:5.0f} s, step {steps}: {shown}", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="cpu")
    parser.add_argument("--stage", choices=("look", "judge", "export"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = CONFIGS[options.config]
    init = options.init or options.out
    if options.init is None:
        begin(init, chosen.sizes, seed=options.seed)
    if options.stage == "export":
        write_checkpoint(load_model(init), init, options.out, torch.float16)
        return
    run = Run(options.stage, init, options.out, options.minutes, options.seed, options.samples)
    Trainer(run, chosen.training).train()


if __name__ == "__main__":
    main()
