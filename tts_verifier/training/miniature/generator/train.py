"""Trains the bundled generator, stage by stage.

    train='python -m tts_verifier.training.miniature.generator.train'
    $train --config gpu --stage vae --out DIR --minutes 3
    $train --config gpu --stage text --init DIR --out DIR
    $train --config gpu --stage flow --init DIR --out DIR
    $train --config gpu --stage biases --init DIR --out DIR
    $train --stage export --init DIR --out FOLDER
    $train --stage sample --init FOLDER --out DIR --count 8192

Every stage reads one pipeline folder and writes one; without --init the generator starts from
random weights. `check` prints the oracle's pass rates by category; `sample` writes images that the
verifier learns from.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from tts_verifier.generators.diffusers.loading import load_pipeline
from tts_verifier.shapes import oracle
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.training.common import (
    CapturedStep,
    NamedLosses,
    Periodic,
    WeightAverage,
    learning_rate,
    mixed_precision,
    train_for,
)
from tts_verifier.training.miniature.generator.build import build_pipeline
from tts_verifier.training.miniature.generator.config import GENERATOR_PRESETS, GeneratorTraining
from tts_verifier.training.miniature.generator.sampling import (
    GUIDANCE,
    generate_images,
    sample_captions,
)
from tts_verifier.training.miniature.generator.stages import (
    FlowStage,
    GeneratorStage,
    TextStage,
    VaeStage,
)

STAGES: Final = ("vae", "text", "flow", "biases")
PRINT_SECONDS: Final = 20.0
SAVE_SECONDS: Final = 120.0
SHARD_SIZE: Final = "11MB"
"""Largest file of an exported folder."""
CHECK_CAPTIONS_SEED: Final = 1_000_003
"""Picks the held-out captions of `pass_rates`."""


def make_stage(name: str, pipe: Any, training: GeneratorTraining, seed: int) -> GeneratorStage:
    """Returns one of STAGES over a pipeline."""
    generator = torch.Generator(pipe.device).manual_seed(seed)
    if name == "vae":
        return VaeStage(pipe, generator, training)
    if name == "text":
        return TextStage(pipe, training)
    return FlowStage(pipe, generator, training, biased=name == "biases")


class GeneratorTrainer:
    """Runs one stage for a number of minutes and writes a pipeline with averaged weights.

    Not safe to share between threads.

    Args:
        pipe: the pipeline that the stage trains, in place.
        stage: the stage of training.
        ema_decay: decay of the averaged weights.
    """

    def __init__(self, pipe: Any, stage: GeneratorStage, *, ema_decay: float) -> None:
        self.pipe, self.stage = pipe, stage
        self._on_gpu = pipe.device.type == "cuda"
        self.module = stage.module.train()
        self.average = WeightAverage(self.module, ema_decay)
        # A captured step must read the learning rate from the device, or it would replay the first
        # one; on a CPU a plain number will do.
        self._rate = torch.tensor(stage.peak_learning_rate, device=pipe.device)
        self._optimiser = torch.optim.AdamW(
            [p for p in self.module.parameters() if p.requires_grad],
            lr=self._rate if self._on_gpu else stage.peak_learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            capturable=self._on_gpu,
            fused=not self._on_gpu,
        )
        self.step = CapturedStep(self._step)

    def _step(self, *inputs: Tensor) -> NamedLosses:
        self._optimiser.zero_grad(set_to_none=True)
        with mixed_precision(self.pipe.device):
            losses = self.stage.losses(*inputs)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0, foreach=True)
        self._optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def train(self, minutes: float, out: Path) -> None:
        """Trains, printing losses and saving to `out` on the way and at the end."""
        batches = self.stage.batches()

        def step(progress: float) -> NamedLosses:
            self._set_learning_rate(learning_rate(self.stage.peak_learning_rate, progress))
            losses = self.step(*next(batches))
            self.average.update()
            return losses

        save = Periodic(SAVE_SECONDS, lambda: self.save(out))
        train_for(minutes, step, print_seconds=PRINT_SECONDS, periodic=[save])

    def _set_learning_rate(self, value: float) -> None:
        if self._on_gpu:
            self._rate.fill_(value)
            return
        for group in self._optimiser.param_groups:
            group["lr"] = value

    def save(self, out: Path) -> None:
        """Writes the pipeline with the averaged weights; training goes on with the live ones."""
        live = {k: v.clone() for k, v in self.module.state_dict().items()}
        # The pipeline consists of the live modules, so they lend their places to the average.
        self.module.load_state_dict(self.average.model.state_dict())
        self.stage.finish()
        self.pipe.save_pretrained(out)
        self.module.load_state_dict(live)


def pass_rates(pipe: Any, count: int, guidance: float = GUIDANCE) -> dict[str, float]:
    """Returns the pass rate of single images under the oracle, by category and in `all`.

    Args:
        pipe: the generator.
        count: number of held-out captions, one image each.
        guidance: scale of classifier-free guidance.
    """
    captions = sample_captions(count, CHECK_CAPTIONS_SEED, "held_out")
    passed: dict[str, list[bool]] = defaultdict(list)
    images = generate_images(pipe, captions, guidance).numpy()
    for caption, image in zip(captions, images, strict=True):
        passed[parse_caption(caption).category].append(oracle(image, caption).passed)
    rates = {category: sum(results) / len(results) for category, results in passed.items()}
    return {**rates, "all": sum(map(sum, passed.values())) / count}


def write_samples(pipe: Any, count: int, out: Path, *, seed: int) -> None:
    """Writes one image for each of `count` training captions, and the captions, to an .npz."""
    captions = sample_captions(count, seed, "train")
    out.mkdir(parents=True, exist_ok=True)
    images = generate_images(pipe, captions).numpy()
    np.savez(out / "samples.npz", images=images, captions=captions)


def export(pipe: Any, out: Path) -> None:
    """Writes the folder that ships: half precision, files of at most 11 MB.

    The folder in which the model was trained is removed from the configs. The small text encoders
    stay in float32: transformers loads a model in its stored precision, and text encoders in half
    precision would not run on a CPU beside the other parts, which are loaded in float32.
    """
    pipe.transformer.half()
    pipe.vae.half()
    pipe.save_pretrained(out, max_shard_size=SHARD_SIZE)
    for path in (out / "model_index.json", *out.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def print_pass_rates(pipe: Any, count: int, guidances: list[float]) -> None:
    """Prints the pass rates at each scale of guidance."""
    for guidance in guidances:
        rates = pass_rates(pipe.to(torch.float32), count, guidance)
        listed = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
        print(f"passed at guidance {guidance:g}: {listed}", flush=True)


def generator_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", choices=GENERATOR_PRESETS, default="cpu")
    parser.add_argument("--stage", choices=(*STAGES, "check", "export", "sample"), required=True)
    parser.add_argument("--init", type=Path, help="folder of the pipeline to start from")
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=96, help="number of captions")
    parser.add_argument("--guidance", type=float, nargs="+", default=[GUIDANCE])
    options = parser.parse_args()
    # Checked before training: a missing folder would end a stage at its first save.
    if options.out is None and options.stage != "check":
        parser.error(f"--stage {options.stage} needs --out, a folder to write to")
    if options.init is None and options.stage not in STAGES:
        parser.error(f"--stage {options.stage} needs --init, the folder of a trained pipeline")
    return options


def main() -> None:
    """Runs the command line."""
    options = generator_options()
    torch.set_num_threads(options.threads)
    preset = GENERATOR_PRESETS[options.config]
    if options.init is None:
        pipe = build_pipeline(preset.sizes, options.out, seed=options.seed)
        pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    else:
        pipe = load_pipeline(options.init, "float32")
    if options.stage == "export":
        export(pipe, options.out)
        return
    if options.stage in STAGES:
        torch.manual_seed(options.seed)
        stage = make_stage(options.stage, pipe, preset.training, options.seed)
        trainer = GeneratorTrainer(pipe, stage, ema_decay=preset.training.ema_decay)
        trainer.train(options.minutes, options.out)
        pipe = load_pipeline(options.out, "float32", str(pipe.device))
    if options.stage == "sample":
        write_samples(pipe, options.count, options.out, seed=options.seed)
    if options.stage in ("flow", "biases", "check"):
        print_pass_rates(pipe, options.count, options.guidance)


if __name__ == "__main__":
    main()
