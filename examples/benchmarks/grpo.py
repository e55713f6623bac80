"""Measures steps of GRPO with random weights: seconds of each part, memory, updates a second.

    python examples/benchmarks/grpo.py --out figures.json                    # 3 B, 1 prompt x 8
    python examples/benchmarks/grpo.py --size bundled --prompts 64 --out figures.json
    python examples/benchmarks/grpo.py --size tiny --steps 2 --reply 16 --out figures.json

Prompts are as long as with the released tokenizer, 324 image tokens and 440 of text (`bundled`: 49
and 30). Random weights end no reply, so each has --reply tokens. Such replies cannot be read: their
rewards are random numbers, and both maps are decoded from other states of the same shape, so that a
step has all the work of a real one but the parsing of replies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from cold_start import PROMPT_TOKENS, random_checkpoint, wait

sys.path.insert(0, str(Path(__file__).parents[1]))

from tts_verifier.training.cold_start.settings import RunSettings
from tts_verifier.training.cold_start.stages import read_for_training
from tts_verifier.training.grpo.grpo import assemble, policy_step
from tts_verifier.training.grpo.measures import Rewarded
from tts_verifier.training.grpo.prompts import RatedPrompt
from tts_verifier.training.grpo.rollouts import Group
from tts_verifier.training.grpo.settings import GrpoSettings
from tts_verifier.training.richhf.prepared import map_size
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint, find_checkpoint
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import MAP_BATCH, decode_maps

NO_FLAGS = {"stop": 0.0, "save": 0.0}
GIB = 2**30
SECONDS = "seconds_"


def random_prompts(
    checkpoint: Checkpoint, count: int, text_tokens: int, first: int
) -> list[RatedPrompt]:
    """Returns prompts of random text and pictures."""
    config, processor = checkpoint.model.config, checkpoint.processor
    merged, rng = processor.merged_tokens, np.random.default_rng(first)
    rows, columns = processor.grid
    values = 3 * processor.temporal_patch_size * processor.patch_size**2
    none = np.zeros(map_size(processor), np.float32)
    prompts = []
    for place in range(first, first + count):
        text = rng.integers(0, 256, text_tokens).tolist()
        ids = [*text[:16], *[config.image_token_id] * merged, *text[16:]]
        patches = rng.standard_normal((rows * columns, values), np.float32)
        prompts.append(RatedPrompt(place, "", ids, patches, [0.5] * 4, none, none))
    return prompts


class RandomRewards:
    """Gives random rewards, and decodes as many maps as replies with both tokens have."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._generator = torch.Generator().manual_seed(0)
        merge = checkpoint.processor.merge_size
        self._cells = tuple(side // merge for side in checkpoint.processor.grid)
        self.model: Any = None

    def __call__(self, groups: Sequence[Group]) -> Rewarded:
        """Rewards the replies of groups."""
        size = len(groups[0].replies)
        for group in groups:
            visual = group.visual[None].expand(MAP_BATCH, -1, -1)
            states = group.visual[:1].expand(MAP_BATCH, -1)
            for _ in range(-(-2 * size // MAP_BATCH)):
                decode_maps(self.model, states, visual, self._cells)
        totals = torch.rand(len(groups), size, dtype=torch.float64, generator=self._generator)
        return Rewarded(totals, {}, 0)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Takes steps and returns the figures."""
    cuda = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if cuda else "no")
    if options.size == "bundled":
        checkpoint, text_tokens = read_for_training(find_checkpoint("shapes")), 30
    else:
        checkpoint = random_checkpoint(options.size, accelerator.device)
        # As a checkpoint is loaded: what is not trained never lies on the GPU in float32.
        checkpoint.model.to("cpu")
        torch.cuda.empty_cache()
        text_tokens = PROMPT_TOKENS
    steps = options.warm_up + options.steps
    run = RunSettings(
        "random",
        "none",
        steps,
        options.prompts * options.group,
        learning_rate=1e-6,
        recompute=not options.keep_activations,
    )
    settings = GrpoSettings(
        "none", options.prompts, options.group, max_new_tokens=options.reply, block=options.block
    )
    reward = RandomRewards(checkpoint)
    training = assemble(checkpoint, run, settings, accelerator, reward)
    reward.model = training.rollouts.model
    rows, times = [], []
    for step in range(steps):
        prompts = random_prompts(checkpoint, options.prompts, text_tokens, step * options.prompts)
        wait(accelerator.device)
        began = time.perf_counter()
        rows.append(policy_step(training, step, prompts, NO_FLAGS))
        times.append(time.perf_counter() - began)
        print(f"step {step}: {times[-1]:.2f} s", flush=True)
    counted, spent = rows[options.warm_up :], times[options.warm_up :]
    parts = {name for row in counted for name in row if name.startswith(SECONDS)}
    return {
        **vars(options),
        "on": torch.cuda.get_device_name() if cuda else "CPU",
        "prompt_tokens": len(prompts[0].ids),
        "reply_tokens": statistics.mean(row["length"] for row in counted),
        "skipped": training.guard.skipped,
        "kl_of_last_step": counted[-1].get("kl"),
        "rollout_gap_of_last_step": counted[-1]["rollout_gap"],
        "seconds_a_step": statistics.mean(spent),
        "seconds_median": statistics.median(spent),
        "updates_per_second": 1 / statistics.mean(spent),
        "minutes_of_400_steps": 400 * statistics.mean(spent) / 60,
        **{part: statistics.mean(row.get(part, 0.0) for row in counted) for part in sorted(parts)},
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB if cuda else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", default="3b", help="3b, tiny, a file of make_checkpoint.py, bundled"
    )
    parser.add_argument("--prompts", type=int, default=1, help="of a step")
    parser.add_argument("--group", type=int, default=8, help="replies to a prompt")
    parser.add_argument("--reply", type=int, default=256, help="tokens of a reply")
    parser.add_argument("--block", type=int, help="groups that go through the network together")
    parser.add_argument("--steps", type=int, default=20, help="that are measured")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--keep-activations", action="store_true")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    figures = measure(options)
    Path(options.out).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
