"""`tts-train cold-start-1` and `cold-start-2`: the supervised stages of ImageDoctor.

Stage 1 learns answers alone, as text. Stage 2 learns reasons, answers and both heatmaps:
cross-entropy of the text plus the weighted squared errors of the maps; a share of its rows stays
answers alone, so that one set of weights serves both instructions (paper, section 3.2; official
configs cold_start_1.yaml and cold_start_2.yaml). COLD_START.md has commands and choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from tts_verifier.errors import InputError, RunError
from tts_verifier.shapes.vocabulary import SIZE
from tts_verifier.training.cold_start.batches import RowBlock
from tts_verifier.training.cold_start.clock import Clock, record_step
from tts_verifier.training.cold_start.network import (
    ColdStartNetwork,
    parameter_groups,
    write_trained,
)
from tts_verifier.training.cold_start.settings import (
    FREE_KEYS,
    MINIATURE,
    RunKeys,
    RunSettings,
    StageSettings,
)
from tts_verifier.training.cold_start.sources import (
    BlockStream,
    MiniatureSource,
    RatedSource,
    RowSource,
    read_reasons,
)
from tts_verifier.training.common.interruption import Interruption
from tts_verifier.training.common.run_folder import (
    RunFolder,
    check_run_folder,
    plain_values,
)
from tts_verifier.training.common.step_guard import StepGuard
from tts_verifier.training.examples import (
    Examples,
    examples_of,
    miniature_examples,
    show_checkpoint,
)
from tts_verifier.training.verifier.token_rows import check_heatmap_tokens
from tts_verifier.verifiers.imagedoctor.checkpoint.limits import read_limits
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    Checkpoint,
    find_checkpoint,
    load_model,
)
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.image.preprocess import Processor
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

ADAM_BETAS = (0.9, 0.95)
"""The betas of AdamW."""
MOST_GRADIENT = 1.0
"""The norm that gradients are clipped to."""


def cold_start_1(
    *,
    init: str,
    data: str,
    output: str,
    steps: int,
    batch: int,
    split: str = "train",
    in_memory: bool = False,
    **keys: Unpack[RunKeys],
) -> None:
    """Trains on answers alone. The arguments are the keys of the config.

    Args:
        init: see `RunSettings`, as for `output`, `steps`, `batch` and the other keys.
        data: a folder of RichHF-18K or of its miniature, or "miniature", as in stage 2.
        output: the folder of the run.
        steps: its length.
        batch: rows of a step.
        split: of the data.
        in_memory: whether pictures are decoded once and kept.
        **keys: see `RunSettings`.
    """
    run = RunSettings(init, output, steps, batch, **keys)
    run_stage(run, StageSettings(1, data, split, in_memory))


def cold_start_2(
    *,
    init: str,
    data: str,
    output: str,
    steps: int,
    batch: int,
    split: str = "train",
    reasons: str | None = None,
    samples: str | None = None,
    answer_only_share: float = 0.25,
    answer_weight: float = 0.0,
    map_weight: float | None = None,
    map_rows: int | None = None,
    in_memory: bool = False,
    **keys: Unpack[RunKeys],
) -> None:
    """Trains on reasons, answers and heatmaps. The arguments are the keys of the config.

    Args:
        init: see `RunSettings`, as for `output`, `steps`, `batch` and the other keys.
        data: a folder of RichHF-18K or of its miniature, or "miniature": endless new pictures of
            the miniature world with the exact truth.
        output: the folder of the run.
        steps: its length.
        batch: rows of a step.
        split: of the data.
        reasons: a JSONL file of reasons; None = those that the miniature's truth gives.
        samples: a folder of the generator's samples, for data "miniature" only.
        answer_only_share: share of rows whose reply is the answer alone.
        answer_weight: of those answers as a loss of their own, because their few digits hardly
            count among all tokens.
        map_weight: of both map errors; None = `heatmap_weight` of the checkpoint's config.
        map_rows: rows of a block that train the heatmaps, whose heads cost much; None = all.
        in_memory: whether pictures are decoded once and kept.
        **keys: see `RunSettings`.
    """
    run = RunSettings(init, output, steps, batch, **keys)
    stage = StageSettings(
        2,
        data,
        split,
        in_memory,
        reasons=reasons,
        samples=samples,
        answer_only_share=answer_only_share,
        answer_weight=answer_weight,
        map_weight=map_weight,
        map_rows=map_rows,
    )
    run_stage(run, stage)


def run_stage(run: RunSettings, stage: StageSettings) -> None:
    """Reads the checkpoint and the data, and trains."""
    check_run_folder(run.output, asdict(run) | asdict(stage), FREE_KEYS)
    accelerator = start_processes(run)
    checkpoint = read_for_training(find_checkpoint(run.init))
    source = open_source(checkpoint, run, stage, run.blocks_for(accelerator.num_processes))
    network = ColdStartNetwork(
        checkpoint,
        source=SIZE if stage.data == MINIATURE else None,
        map_weight=stage.map_weight,
        answer_weight=stage.answer_weight,
        train_tower=run.train_tower,
        lora_rank=run.lora_rank,
        recompute=run.recompute,
    )
    step = train(network, source, run, stage, accelerator)
    if run.examples:
        # The memory of the training is the verifier's now.
        del checkpoint, network
        accelerator.free_memory()
    if run.examples and accelerator.is_main_process:
        show_checkpoint(
            Path(run.output),
            lambda: examples_for(run, stage),
            step=step,
            device=accelerator.device,
            detail="score" if stage.stage == 1 else "diagnose",
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def examples_for(run: RunSettings, stage: StageSettings) -> Examples:
    """Returns the pictures that the report of a run shows."""
    if stage.data == MINIATURE:
        return miniature_examples(run.examples)
    return examples_of(Path(stage.data), stage.split, run.examples)


def open_source(
    checkpoint: Checkpoint, run: RunSettings, stage: StageSettings, blocks: int
) -> RowSource:
    """Returns the source of a stage, whose steps have so many blocks."""
    rows = run.batch // blocks
    common: dict[str, Any] = {
        "rows": rows,
        "map_rows": rows if stage.map_rows is None else min(stage.map_rows, rows),
        "answer_only_share": stage.answer_only_share,
        "seed": run.seed,
    }
    if stage.data == MINIATURE:
        samples = Path(stage.samples) if stage.samples else None
        return MiniatureSource(checkpoint, samples=samples, **common)
    folder = existing_folder(stage.data)
    reasons: dict[str, str] = {}
    if stage.stage == 2:
        path = Path(stage.reasons) if stage.reasons else None
        reasons = read_reasons(folder, stage.split, path)
    common |= {"blocks": blocks, "in_memory": stage.in_memory}
    return RatedSource(checkpoint, folder, stage.split, reasons, **common)


def start_processes(run: RunSettings) -> Accelerator:
    """Joins the other processes, if there are any, and chooses device and precision."""
    precision = run.precision or ("bf16" if torch.cuda.is_available() else "no")
    return Accelerator(
        # Else processes that torchrun starts on CPUs would each train alone, in one folder.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with=run.tracker_names() or None,
        project_dir=run.output,
    )


def existing_folder(data: str) -> Path:
    """Returns the path of a folder of ratings.

    Raises:
        InputError: there is none.
    """
    folder = Path(data)
    if not folder.exists():
        raise InputError(
            f"data must be a folder of RichHF-18K or of its miniature, or {MINIATURE!r}; "
            f"{data!r} does not exist. tts-train miniature-richhf makes one.",
            argument="data",
        )
    return folder


def read_for_training(folder: Path) -> Checkpoint:
    """Reads a checkpoint in float32, on the CPU.

    Raises:
        InputError: the tokenizer lacks the heatmap tokens.
        CheckpointError: a file is missing, or the parts do not fit together.
    """
    config = ImageDoctorConfig.from_folder(folder)
    tokenizer = PromptTokenizer.from_folder(folder, config)
    check_heatmap_tokens(tokenizer, config, str(folder))
    processor = Processor.from_folder(folder, config)
    return Checkpoint(load_model(folder, config), tokenizer, processor, read_limits(folder, config))


def train(
    network: ColdStartNetwork,
    source: RowSource,
    run: RunSettings,
    stage: StageSettings,
    accelerator: Accelerator,
) -> int:
    """Takes the steps that are left, and writes the checkpoint when they end or the time is up.

    Args:
        network: trained in place.
        source: of the rows.
        run: the settings of the run, which one that goes on must share, but for `FREE_KEYS`.
        stage: the settings of the stage, likewise.
        accelerator: of its processes.

    Returns:
        The steps that were taken, those of earlier calls included.

    Raises:
        RunError: losses are no numbers.
        KeyboardInterrupt, SystemExit: there was a signal. All is kept before that, unless Ctrl-C
            came twice.
    """
    settings = asdict(run) | asdict(stage)
    deciding = {k: v for k, v in settings.items() if k not in FREE_KEYS}
    optimiser = torch.optim.AdamW(
        parameter_groups(network, run.weight_decay),
        lr=run.learning_rate,
        betas=ADAM_BETAS,
        fused=accelerator.device.type == "cuda",
    )
    network, optimiser = accelerator.prepare(network, optimiser)
    guard = StepGuard()
    entry = f"cold-start-{stage.stage}"
    kept = {"guard": guard}
    path = Path(run.output)
    folder = RunFolder(path, deciding, accelerator, entry=entry, kept=kept, free=FREE_KEYS)
    first = taken = folder.resume()
    accelerator.init_trackers("cold-start", plain_values(deciding))
    interruption = Interruption()
    clock = Clock(run, first, interruption)
    with interruption:
        for step, blocks in zip(
            range(first, run.steps), loaded(source, run, accelerator, first), strict=True
        ):
            rate = run.learning_rate_at(step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            try:
                row = take_step(network, optimiser, accelerator, guard, step, blocks, clock.flags())
            except RunError:
                folder.save_metrics()
                raise
            stop, save = row.pop("stop") > 0, row.pop("save") > 0
            last = stop or step + 1 == run.steps
            taken = step + 1
            row |= {"step": step, "learning_rate": rate}
            record_step(row, run, folder, clock, accelerator, guard, save=save, last=last)
            if stop:
                break
    write_trained(accelerator.unwrap_model(network).model, run, accelerator)
    interruption.raise_if_asked()
    return taken


def loaded(
    source: RowSource, run: RunSettings, accelerator: Accelerator, first: int
) -> Iterator[list[RowBlock]]:
    """Yields this process' blocks of each step from `first` on."""
    numbers = range(
        accelerator.process_index,
        run.blocks_for(accelerator.num_processes),
        accelerator.num_processes,
    )
    loader = DataLoader(
        BlockStream(source, numbers),
        batch_size=None,
        sampler=range(first, run.steps),
        num_workers=run.workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=use_one_thread if run.workers else None,
    )
    yield from loader


def use_one_thread(_: int) -> None:
    """Keeps a worker from using the cores of the others."""
    torch.set_num_threads(1)


def take_step(
    network: Any,
    optimiser: Any,
    accelerator: Accelerator,
    guard: StepGuard,
    step: int,
    blocks: list[RowBlock],
    flags: dict[str, float],
) -> dict[str, float]:
    """Takes one step, unless its loss or gradient is not finite.

    Args:
        network: as accelerate prepared it.
        optimiser: as accelerate prepared it.
        accelerator: of the processes.
        guard: counts skipped steps.
        step: its number.
        blocks: of this process.
        flags: of this process, which all processes get back as the maximum.

    Returns:
        Mean losses over all processes, the norm of the gradient, the rows, tokens, and flags.
    """
    device, processes = accelerator.device, accelerator.num_processes
    counts = torch.stack([block.counts for block in blocks])
    totals = accelerator.reduce(counts.sum(0).to(device), "sum").clamp(min=1)
    # Processes average their gradients, so each counts as many times as there are processes.
    shares = counts.to(device) * processes / totals
    sums: dict[str, Tensor] = {}
    for i, block in enumerate(blocks):
        on_device = RowBlock(*(column.to(device, non_blocking=True) for column in block))
        waits = i + 1 < len(blocks)
        with accelerator.no_sync(network) if waits else nullcontext():
            losses = network(on_device, shares[i])
            accelerator.backward(losses["total"])
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / processes
    norm = accelerator.clip_grad_norm_(network.parameters(), MOST_GRADIENT)
    tokens = float(sum(block.ids.numel() for block in blocks))
    local = torch.stack([*(v.float() for v in sums.values()), torch.tensor(tokens, device=device)])
    flag = torch.tensor(list(flags.values()), device=device)
    everything = accelerator.reduce(torch.cat([local, flag]), "sum").tolist()
    row = dict(zip([*sums, "tokens", *flags], everything, strict=True))
    row |= {"gradient": float(norm), "rows": float(len(blocks[0].ids) * len(blocks) * processes)}
    row["skipped"] = float(not guard.allows(step, row["total"], row["gradient"]))
    if not row["skipped"]:
        optimiser.step()
    optimiser.zero_grad()
    return row
