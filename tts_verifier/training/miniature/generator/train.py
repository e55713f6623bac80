"""Trains the bundled generator, stage by stage.

    train='python -m tts_verifier.training.miniature.generator.train'
    $train --config gpu --stage vae --out DIR --minutes 3
    $train --config gpu --stage text --init DIR --out DIR
    $train --config gpu --stage flow --init DIR --out DIR
    $train --config gpu --stage habits --init DIR --out DIR
    $train --stage export --init DIR --out FOLDER
    $train --stage sample --init FOLDER --out DIR --count 8192

Every stage starts from a pipeline's folder alone and leaves one; without --init a generator
is made of random numbers. `check` prints the pass rate under the oracle, by category; `sample`
writes pictures for the verifier to learn from.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from tts_verifier.shapes import oracle
from tts_verifier.shapes.captions import Split, random_specs
from tts_verifier.shapes.grammar import parse_caption, phrase, variants
from tts_verifier.training.common.cuda_graph import Captured
from tts_verifier.training.common.loop import Average, rate
from tts_verifier.training.miniature.generator.build import build, load
from tts_verifier.training.miniature.generator.config import CONFIGS, Training
from tts_verifier.training.miniature.generator.stages import Flow, Stage, Text, Vae

STAGES: Final = ("vae", "text", "flow", "habits")
PRINT_SECONDS: Final = 20.0
SAVE_SECONDS: Final = 120.0
SHARD: Final = "11MB"
HELD_OUT_SEED: Final = 1_000_003
BATCH: Final = 256
STEPS: Final = 20
GUIDANCE: Final = 4.0


def make_stage(name: str, pipe: Any, training: Training, seed: int) -> Stage:
    """Returns a stage over a pipeline."""
    generator = torch.Generator(pipe.device).manual_seed(seed)
    if name == "vae":
        return Vae(pipe, generator, training)
    if name == "text":
        return Text(pipe, training)
    return Flow(pipe, generator, training, habits=name == "habits")


class Trainer:
    """Runs one stage for a number of minutes and leaves the averaged weights in the pipeline."""

    def __init__(self, pipe: Any, stage: Stage, *, ema: float) -> None:
        self.pipe, self.stage = pipe, stage
        on_gpu = pipe.device.type == "cuda"
        self.module = stage.module.train()
        self.average = Average(self.module, ema)
        self.rate = torch.tensor(stage.peak, device=pipe.device)
        self.optimiser = torch.optim.AdamW(
            [p for p in self.module.parameters() if p.requires_grad],
            lr=self.rate if on_gpu else stage.peak,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            capturable=on_gpu,
            fused=not on_gpu,
        )
        self.step = Captured(self._step)

    def _step(self, *inputs: Tensor) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        kind = self.pipe.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False):
            losses = self.stage.loss(*inputs)
        losses[0].backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        return losses.detach()

    def train(self, minutes: float, out: Path) -> None:
        """Trains, printing losses and saving now and then."""
        began = printed = saved = time.monotonic()
        shown: list[Tensor] = []
        batches = self.stage.batches()
        steps = 0
        while (now := time.monotonic()) - began < 60 * minutes:
            self._at(rate(self.stage.peak, (now - began) / (60 * minutes)))
            shown.append(self.step(*next(batches)).clone())
            self.average.update()
            steps += 1
            if now - printed > PRINT_SECONDS:
                mean = ", ".join(f"{x:.4f}" for x in torch.stack(shown).mean(0).tolist())
                print(f"{now - began:5.0f} s, step {steps}: {mean}", flush=True)
                printed, shown = now, []
            if now - saved > SAVE_SECONDS:
                self.save(out)
                saved = now
        self.save(out)

    def _at(self, value: float) -> None:
        if self.pipe.device.type == "cuda":
            self.rate.fill_(value)
            return
        for group in self.optimiser.param_groups:
            group["lr"] = value

    def save(self, out: Path) -> None:
        """Writes the pipeline with the averaged weights, and goes on with the live ones."""
        live = {k: v.clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(self.average.model.state_dict())
        if isinstance(self.stage, Vae):
            self.stage.finish(self.pipe)
        self.pipe.save_pretrained(out)
        self.module.load_state_dict(live)


def asked(count: int, seed: int, split: Split) -> list[str]:
    """Draws captions, the six categories in equal shares; the small ones' come repeatedly."""
    rng = random.Random(seed)
    specs = random_specs(count, rng, split=split)
    return [phrase(spec, rng.randrange(variants(spec))) for spec in specs]


def drawn(pipe: Any, texts: list[str], guidance: float) -> Tensor:
    """Draws texts in batches with seeds 0, 1, 2, …: uint8 (N, 128, 128, 3)."""
    parts = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        seeds = [torch.Generator("cpu").manual_seed(start + i) for i in range(len(part))]
        images = pipe(
            part, generator=seeds, num_inference_steps=STEPS, guidance_scale=guidance,
            max_sequence_length=16, output_type="pt",
        ).images  # fmt: skip
        parts.append((images * 255).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(parts)


def check(pipe: Any, count: int, guidance: float = GUIDANCE) -> dict[str, float]:
    """Returns the pass rate of single draws on held-out captions, by category and in all."""
    texts = asked(count, HELD_OUT_SEED, "held_out")
    passed: dict[str, list[bool]] = defaultdict(list)
    for text, image in zip(texts, drawn(pipe, texts, guidance).numpy(), strict=True):
        passed[parse_caption(text).category].append(oracle(image, text).passed)
    rates = {name: sum(found) / len(found) for name, found in passed.items()}
    return {**rates, "all": sum(map(sum, passed.values())) / count}


def sample(pipe: Any, count: int, out: Path, *, seed: int) -> None:
    """Writes one picture for each of `count` training captions, with these, to an .npz."""
    texts = asked(count, seed, "train")
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "samples.npz", images=drawn(pipe, texts, GUIDANCE).numpy(), captions=texts)


def export(pipe: Any, out: Path) -> None:
    """Writes the folder that ships: half precision, shards of at most 11 MB, no word of where
    it was trained.

    The small text encoders stay in float32: transformers loads a model in the precision that
    it was stored in, and half precision would not run on a CPU beside the others.
    """
    pipe.transformer.half()
    pipe.vae.half()
    pipe.save_pretrained(out, max_shard_size=SHARD)
    for path in (out / "model_index.json", *out.glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="cpu")
    parser.add_argument("--stage", choices=(*STAGES, "check", "export", "sample"), required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=96, help="captions to draw")
    parser.add_argument("--guidance", type=float, nargs="+", default=[GUIDANCE])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = CONFIGS[options.config]
    made = options.init is None
    pipe = build(chosen.sizes, options.out, seed=options.seed) if made else load(options.init)
    pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    if options.stage == "export":
        export(pipe, options.out)
        return
    if options.stage in STAGES:
        torch.manual_seed(options.seed)
        stage = make_stage(options.stage, pipe, chosen.training, options.seed)
        Trainer(pipe, stage, ema=chosen.training.ema).train(options.minutes, options.out)
        pipe = load(options.out).to(pipe.device)
    if options.stage == "sample":
        sample(pipe, options.count, options.out, seed=options.seed)
    if options.stage in ("flow", "habits", "check"):
        for guidance in options.guidance:
            found = check(pipe.to(torch.float32), options.count, guidance)
            said = ", ".join(f"{k} {v:.2f}" for k, v in found.items())
            print(f"passed at guidance {guidance:g}: {said}", flush=True)


if __name__ == "__main__":
    main()
