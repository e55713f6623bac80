"""Measures a step of the cold start with random weights: rate, memory, share of the matmul rate.

    python examples/benchmarks/cold_start.py --out figures.json            # 3 B, one GPU
    python examples/benchmarks/cold_start.py --size tiny --batch 2 --block 1 --out figures.json
    accelerate launch --num_processes 2 examples/benchmarks/cold_start.py --out figures.json

Rows are as long as with the released tokenizer: 324 image tokens, 440 of the prompt and --reply of
the reply. `executed` counts every floating-point operation of a step that torch can count, those of
the recomputation included; `needed` counts the forward pass three times where weights are trained
and once for a frozen tower. Shares are of the rate of one large product in bf16 on the same device.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import make_checkpoint

from tts_verifier.training.cold_start.batches import RowBlock, make_block
from tts_verifier.training.cold_start.network import ColdStartNetwork, parameter_groups
from tts_verifier.training.cold_start.stages import ADAM_BETAS, take_step
from tts_verifier.training.common.step_guard import StepGuard
from tts_verifier.training.richhf.prepared import map_size
from tts_verifier.training.verifier.sft_loss import IGNORED
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

PROMPT_TOKENS = 440
"""Of instruction, caption and template, with the released tokenizer."""
NO_FLAGS = {"stop": 0.0, "save": 0.0}
GIB = 2**30


def random_checkpoint(size: str, device: torch.device) -> Checkpoint:
    """Returns a checkpoint of random weights in float32."""
    raw = make_checkpoint.config(size)
    config = ImageDoctorConfig.from_dict(raw)
    with device:
        model = ImageDoctorModel(config)
    words = PromptTokenizer(make_checkpoint.tokenizer(raw), config)
    processor = Processor(input_size=112 if size == "tiny" else 512)
    return Checkpoint(model, words, processor, GenerationLimits(16, ()))


def random_block(checkpoint: Checkpoint, rows: int, reply: int) -> RowBlock:
    """Returns a block of random text and pictures, as long as real ones."""
    config, processor = checkpoint.model.config, checkpoint.processor
    merged, start = processor.merged_tokens, 16
    length = merged + PROMPT_TOKENS + reply
    ids = torch.randint(0, 256, (rows, length))
    ids[:, start : start + merged] = config.image_token_id
    tokens = (config.misalignment_token_id, config.artifact_token_id)
    ids[:, -20], ids[:, -10] = tokens
    labels = ids.clone()
    labels[:, :-reply] = IGNORED
    side = processor.grid[0] * processor.patch_size
    return make_block(
        ids,
        labels,
        torch.zeros(rows, dtype=torch.bool),
        torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8),
        torch.randint(0, 256, (rows, 2, *map_size(processor)), dtype=torch.uint8),
        torch.ones(rows, 2, dtype=torch.bool),
        tokens,
    )


def product_rate(device: torch.device) -> float:
    """Returns the operations a second of a large product in bf16."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    rounds = 20
    for warm in (True, False):
        wait(device)
        began = time.perf_counter()
        for _ in range(3 if warm else rounds):
            a @ a
        wait(device)
    return rounds * 2 * side**3 / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def attention_operations(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Counts an attention: of the scores, and of the values that they weigh."""
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def attention_backward_operations(
    _: Any, query: Sequence[int], key: Sequence[int], value: Sequence[int], *__: Any, **___: Any
) -> int:
    """Counts its backward pass, which makes the scores again."""
    return math.prod(query[:3]) * key[2] * (6 * query[3] + 4 * value[3])


ATTENTIONS = ("efficient", "flash", "cudnn")
FLOP_FORMULAS: dict[Any, Any] = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention{suffix}"): formula
    for name in ATTENTIONS
    for suffix, formula in (
        ("", attention_operations),
        ("_backward", attention_backward_operations),
    )
}
"""torch counts attention with fewer key than query heads only since 2.12."""


def flop_counter() -> FlopCounterMode:
    """Returns a counter of the operations of products, convolutions and attention."""
    return FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)


def needed_operations(network: ColdStartNetwork, block: RowBlock) -> float:
    """Counts what the forward and backward pass of a block need, without recomputation."""
    on_device = RowBlock(*(c.to(network.model.lm_head.weight.device) for c in block))
    shares = torch.ones(4, device=on_device.ids.device)
    with torch.no_grad(), flop_counter() as whole:
        network(on_device, shares)
    grids = [network.grid] * len(block.ids)
    with torch.no_grad(), flop_counter() as tower:
        network.model.visual_features(network.preprocess(on_device.pixels), grids)
    trained = whole.get_total_flops() - tower.get_total_flops()
    return 3 * trained + (3 if network.train_tower else 1) * tower.get_total_flops()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Takes steps and returns the figures."""
    cuda = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if cuda else "no")
    device, processes = accelerator.device, accelerator.num_processes
    checkpoint = random_checkpoint(options.size, device)
    network = ColdStartNetwork(
        checkpoint,
        train_tower=options.train_tower,
        lora_rank=options.lora_rank,
        recompute=not options.keep_activations,
    )
    block = random_block(checkpoint, options.block, options.reply)
    blocks = [block] * (options.batch // options.block // processes)
    with accelerator.autocast():
        needed = needed_operations(network.to(device), block) * len(blocks)
    groups = parameter_groups(network, 0.0)
    optimiser: Any = torch.optim.AdamW(groups, lr=1e-6, betas=ADAM_BETAS, fused=cuda)
    prepared, optimiser = accelerator.prepare(network, optimiser)
    step = [prepared, optimiser, accelerator, StepGuard()]
    with flop_counter() as counter:
        take_step(*step, 0, blocks[:1], NO_FLAGS)
    take_step(*step, 1, blocks, NO_FLAGS)
    wait(device)
    if cuda:  # Counting keeps what a step frees.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for number in range(options.steps):
        row = take_step(*step, 2 + number, blocks, NO_FLAGS)
    wait(device)
    seconds = (time.perf_counter() - began) / options.steps
    rate = product_rate(device)
    executed = counter.get_total_flops() * len(blocks)
    return {
        **vars(options),
        "on": torch.cuda.get_device_name() if cuda else "CPU",
        "processes": processes,
        "tokens_of_a_row": block.ids.shape[1],
        "loss": row["total"],
        "skipped": step[3].skipped,
        "rows_per_second": options.batch / seconds,
        "tokens_per_second": options.batch * block.ids.shape[1] / seconds,
        "product_rate": rate,
        "executed_share": executed / seconds / rate,
        "needed_share": needed / seconds / rate,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB if cuda else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="3b", help="3b, tiny or a file of make_checkpoint.py")
    parser.add_argument("--batch", type=int, default=32, help="rows of a step")
    parser.add_argument("--block", type=int, default=4, help="rows at a time")
    parser.add_argument("--reply", type=int, default=256, help="tokens of a reply")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--train-tower", action="store_true")
    parser.add_argument("--keep-activations", action="store_true")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    figures = measure(options)
    if Accelerator().is_main_process:
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
