"""`tts-train grpo`: reinforcement fine-tuning of an ImageDoctor by its own rewarded replies.

A step draws groups of replies to rated pictures, rewards each reply by the ratings, compares it
with its group, and takes one update towards the better ones, held near the checkpoint that the run
started from (paper, section 3.3; official run_grpo_np_grounding.sh and grpo_jsonl_np.py). GRPO.md
has commands, and where code and paper differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, Unpack

import torch
from accelerate import Accelerator

from tts_verifier.errors import RunError
from tts_verifier.training.cold_start.clock import Clock, record_step
from tts_verifier.training.cold_start.network import (
    choose_trained,
    parameter_groups,
    recompute_activations,
    write_trained,
)
from tts_verifier.training.cold_start.settings import RunSettings
from tts_verifier.training.cold_start.stages import (
    ADAM_BETAS,
    read_for_training,
    start_processes,
)
from tts_verifier.training.common.bounds import check_most
from tts_verifier.training.common.interruption import Interruption
from tts_verifier.training.common.run_folder import (
    Counts,
    RunFolder,
    check_run_folder,
    plain_values,
)
from tts_verifier.training.common.step_guard import StepGuard
from tts_verifier.training.examples import examples_of, show_checkpoint
from tts_verifier.training.grpo.losses import advantages_of
from tts_verifier.training.grpo.measures import (
    OfficialRewards,
    Rewarded,
    Seconds,
    counts_of,
    means_of,
    sum_over_processes,
)
from tts_verifier.training.grpo.policy import Policy
from tts_verifier.training.grpo.prompts import PromptSource, RatedPrompt, prompts_ahead
from tts_verifier.training.grpo.rewards import REWARDS
from tts_verifier.training.grpo.rewards.terms import Scaling
from tts_verifier.training.grpo.rollouts import Group, Rollouts
from tts_verifier.training.grpo.settings import (
    GRPO_FREE_KEYS,
    GrpoRunKeys,
    GrpoSettings,
    Limits,
    LossKind,
)
from tts_verifier.training.grpo.update import Training, update
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint, find_checkpoint

TRAINING_BYTES: Final = 20
"""Of a trained weight: itself, its gradient and two moments in float32, and a reference."""


def grpo(
    *,
    init: str,
    data: str,
    output: str,
    steps: int,
    prompts: int,
    group: int = 8,
    split: str = "train",
    in_memory: bool = False,
    block: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int | None = None,
    loss: LossKind = "grpo",
    beta: float = 0.04,
    epsilon: float = 0.2,
    num_iterations: int = 1,
    rewards: Mapping[str, float] | None = None,
    scaling: Scaling = "code",
    bound_scores: bool = True,
    stop: Mapping[str, float] | None = None,
    **keys: Unpack[GrpoRunKeys],
) -> None:
    """Trains on rewarded replies. The arguments are the keys of the config.

    Args:
        init: see `RunSettings`, as for `output`, `steps` and the other keys.
        data: see `GrpoSettings`, as for all that follows.
        output: the folder of the run.
        steps: its length.
        prompts: of a step.
        group: replies to each prompt.
        split: of the data.
        in_memory: whether pictures are decoded once and kept.
        block: groups that go through the network together.
        temperature: of the replies.
        top_k: of the replies.
        top_p: of the replies.
        max_new_tokens: of a reply.
        loss: how the losses of tokens are averaged.
        beta: of the divergence from the reference.
        epsilon: of the clipping.
        num_iterations: updates with the same replies.
        rewards: name -> weight; None = all.
        scaling: of the rewards.
        bound_scores: of the rewards.
        stop: limits that stop a run.
        **keys: see `RunSettings`.
    """
    settings = GrpoSettings(
        data,
        prompts,
        group,
        split,
        in_memory,
        block,
        temperature,
        top_k,
        top_p,
        max_new_tokens,
        loss,
        beta,
        epsilon,
        num_iterations,
        rewards,
        scaling,
        bound_scores,
        stop or {},
    )
    run = RunSettings(init, output, steps, max(1, prompts * group), **keys)
    run_grpo(run, settings)


def run_grpo(run: RunSettings, settings: GrpoSettings) -> None:
    """Reads the checkpoint and the data, trains, and shows what came of it."""
    weights = settings.weights_of(tuple(REWARDS))
    rewarding = OfficialRewards(weights, settings.scaling, bound_scores=settings.bound_scores)
    check_run_folder(run.output, asdict(run) | asdict(settings), GRPO_FREE_KEYS)
    accelerator = start_processes(run)
    settings.share(0, accelerator.num_processes)
    checkpoint = read_for_training(find_checkpoint(run.init))
    source = PromptSource(checkpoint, settings, run.seed)
    training = assemble(checkpoint, run, settings, accelerator, rewarding)
    step, broken = train_policy(training, source, run)
    # The memory of the training is the verifier's now.
    del checkpoint, training, source
    accelerator.free_memory()
    if run.examples and accelerator.is_main_process:
        show_checkpoint(
            Path(run.output),
            lambda: examples_of(Path(settings.data), settings.split, run.examples),
            step=step,
            device=accelerator.device,
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if broken is not None:
        raise broken


def assemble(
    checkpoint: Checkpoint,
    run: RunSettings,
    settings: GrpoSettings,
    accelerator: Accelerator,
    reward: Callable[[Sequence[Group]], Rewarded],
) -> Training:
    """Makes the parts of a run from a checkpoint, whose model is trained in place.

    Raises:
        InputError: replies may be longer than the checkpoint can read.
    """
    positions = int(checkpoint.model.config.text["max_position_embeddings"])
    what = "the positions that the checkpoint knows"
    check_most("max_new_tokens", settings.max_new_tokens, positions, what)
    choose_trained(checkpoint.model, heads=False, tower=run.train_tower)
    policy = Policy(
        checkpoint.model,
        grid=checkpoint.processor.grid,
        temperature=settings.temperature,
        train_tower=run.train_tower,
    )
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    rollouts = Rollouts(
        checkpoint, settings, run.seed, accelerator.device, reserved=TRAINING_BYTES * trained
    )
    reference = policy.frozen_copy(accelerator.device) if settings.beta else None
    if run.recompute:
        recompute_activations(policy.language)
    optimiser = torch.optim.AdamW(
        parameter_groups(policy.train(), run.weight_decay),
        lr=run.learning_rate,
        betas=ADAM_BETAS,
        fused=accelerator.device.type == "cuda",
    )
    prepared, prepared_optimiser = accelerator.prepare(policy, optimiser)
    return Training(
        prepared,
        prepared_optimiser,
        accelerator,
        reference,
        rollouts,
        reward,
        settings,
        StepGuard(),
    )


def train_policy(
    training: Training, source: PromptSource, run: RunSettings
) -> tuple[int, RunError | None]:
    """Takes the steps that are left, and writes the checkpoint when they end or the time is up.

    Args:
        training: its parts.
        source: of the prompts.
        run: the settings of the run. One that goes on must share them and those of `training`,
            but for `GRPO_FREE_KEYS`.

    Returns:
        The steps that were taken, those of earlier calls included, and the error of a limit that
        is passed: the run is kept before it is raised.

    Raises:
        RunError: no reply can be read, or losses are no numbers.
        KeyboardInterrupt, SystemExit: there was a signal. All is kept before that, unless Ctrl-C
            came twice.
    """
    accelerator, settings = training.accelerator, training.settings
    limits = Limits(settings.stop)
    deciding = asdict(run) | asdict(settings)
    deciding = {key: value for key, value in deciding.items() if key not in GRPO_FREE_KEYS}
    kept: dict[str, Counts] = {"guard": training.guard, "limits": limits}
    path, free = Path(run.output), GRPO_FREE_KEYS
    folder = RunFolder(path, deciding, accelerator, entry="grpo", kept=kept, free=free)
    first = taken = folder.resume()
    accelerator.init_trackers("grpo", plain_values(deciding))
    interruption = Interruption()
    clock = Clock(run, first, interruption)
    broken: RunError | None = None
    share = settings.share(accelerator.process_index, accelerator.num_processes)
    with interruption:
        for step, prompts in prompts_ahead(source, range(first, run.steps), share):
            rate = run.learning_rate_at(step)
            for group in training.optimiser.param_groups:
                group["lr"] = rate
            try:
                row = policy_step(training, step, prompts, clock.flags())
            except RunError:
                folder.save_metrics()
                raise
            stop, save = row.pop("stop") > 0, row.pop("save") > 0
            broken = broken_limit(limits, step, row)
            last = stop or broken is not None or step + 1 == run.steps
            taken = step + 1
            row |= {"step": step, "learning_rate": rate}
            record_step(row, run, folder, clock, accelerator, training.guard, save=save, last=last)
            if stop or broken is not None:
                break
    write_trained(training.trained.model, run, accelerator)
    interruption.raise_if_asked()
    return taken, broken


def broken_limit(limits: Limits, step: int, row: Mapping[str, float]) -> RunError | None:
    """Returns the error of a limit that is passed, None if none is."""
    try:
        limits.check(step, row)
    except RunError as error:
        return error
    return None


def policy_step(
    training: Training, step: int, prompts: Sequence[RatedPrompt], flags: Mapping[str, float]
) -> dict[str, float]:
    """Draws replies, rewards them and updates the policy.

    Args:
        training: its parts.
        step: its number.
        prompts: of this process.
        flags: of this process, which all processes get back as the sum.

    Returns:
        The metrics over all processes, and the flags.

    Raises:
        RunError: no reply of the first step can be read, or loss or gradient were not finite in
            too many steps in a row.
    """
    seconds = Seconds(training.accelerator.device)
    with seconds.of("weights"):
        training.rollouts.update(training.trained.state())
    with seconds.of("rollout"):
        groups = training.rollouts.draw(prompts)
    with seconds.of("rewards"):
        rewarded = training.reward(groups)
    advantages, varies = advantages_of(rewarded.totals)
    kept = [i for i, has_variance in enumerate(varies.tolist()) if has_variance]
    counted = counts_of(groups, rewarded, kept) | dict(flags)
    sums = sum_over_processes(training.accelerator, counted)
    row = means_of(sums) | {name: sums[name] for name in flags}
    check_first_step(step, row)
    # Of groups with much to read first, so that each block has replies of similar lengths.
    kept.sort(key=lambda i: -max(len(reply.ids) for reply in groups[i].replies))
    row |= update(training, step, [(groups[i], advantages[i]) for i in kept], sums, seconds)
    return row | {f"seconds_{part}": spent for part, spent in seconds.spent.items()}


def check_first_step(step: int, row: Mapping[str, float]) -> None:
    """Checks that some reply has scores before anything is trained.

    Raises:
        RunError: none has.
    """
    if step == 0 and row["unread_share"] == 1:
        raise RunError(
            "Rewards need replies with scores, and none of the first step's "
            f"{row['rows']:.0f} replies has all four (mean length {row['length']:.0f} tokens). "
            "Train the cold start first, or raise max_new_tokens."
        )
