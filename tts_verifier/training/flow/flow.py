"""`tts-train flow`: reinforcement fine-tuning of a flow-matching generator by verifiers.

A step draws groups of pictures of some captions, lets verifiers say how good each is and where it
is wrong, compares each with its group, and updates the generator towards the better ones
(DenseFlow-GRPO, arXiv 2510.01010, and the methods that `losses` and `advantages` name). While the
pictures of a step are verified, those of the next one are drawn. FLOW.md has commands and choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import torch
from accelerate import Accelerator
from torch import Tensor

from tts_verifier.errors import RunError, TTSError
from tts_verifier.identity import seed_for
from tts_verifier.training.cold_start.clock import Clock, record_step
from tts_verifier.training.cold_start.settings import RunSettings
from tts_verifier.training.cold_start.stages import start_processes
from tts_verifier.training.common.interruption import Interruption
from tts_verifier.training.common.run_folder import (
    RunFolder,
    check_run_folder,
    plain_values,
    read_metrics,
    written_to,
)
from tts_verifier.training.flow.ahead import DrawnAhead
from tts_verifier.training.flow.evaluation import broken_rule, mean_of
from tts_verifier.training.flow.formulas.advantages import (
    AdvantageKind,
    Advantages,
    Deviation,
    compare_pictures,
)
from tts_verifier.training.flow.formulas.losses import LossForm, RatioKind
from tts_verifier.training.flow.formulas.sde import StepKind
from tts_verifier.training.flow.parts import FlowTraining, assemble_flow
from tts_verifier.training.flow.rewards import Judged
from tts_verifier.training.flow.settings import FlowRunKeys, FlowSettings
from tts_verifier.training.flow.update import metrics_of
from tts_verifier.training.grpo.measures import Seconds

CHECKPOINT = "checkpoint"
"""The folder of a run that holds the trained weights."""


def flow(
    *,
    init: str,
    output: str,
    steps: int,
    prompts: int,
    group: int,
    captions: Any,
    rewards: Sequence[Mapping[str, Any]],
    held_out: Any = None,
    judges: Sequence[Mapping[str, Any]] = (),
    map_verifier: Mapping[str, Any] | None = None,
    maps: Mapping[str, float] | None = None,
    passes_at: float | None = 1.0,
    pass_bonus: float = 0.0,
    easy_weight: float = 0.5,
    loss: LossForm = "policy",
    advantage: AdvantageKind = "scalar",
    deviation: Deviation = "global",
    most_advantage: float = 5.0,
    penalty: float = 1.0,
    steps_drawn: int = 10,
    guidance: float = 1.0,
    update_guidance: float | None = None,
    embedded_guidance: float = 3.5,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int | None = None,
    sampler: StepKind = "sde",
    noise: float = 0.7,
    window: int | None = None,
    trained_steps: int | None = None,
    times: int = 4,
    ratio: RatioKind = "picture",
    clip: float = 1e-4,
    kl: float = 0.04,
    pull: float = 1.0,
    nft_beta: float = 1.0,
    base_pull: float = 0.0,
    reference_rate: float = 0.05,
    updates: int = 1,
    block: int | None = None,
    average: float = 0.0,
    draw_ahead: bool = True,
    lora_alpha: int | None = None,
    lora_targets: Sequence[str] | None = None,
    evaluate_every: int = 0,
    evaluate_captions: int = 96,
    stop: Mapping[str, float] | None = None,
    **keys: Unpack[FlowRunKeys],
) -> None:
    """Trains a generator by verifiers. The arguments are the keys of the config.

    `init` is the pipeline: a folder, a hub id or "shapes". `FlowSettings` describes the other
    keys, `RunSettings` `output`, `steps` and those of `**keys`.
    """
    given = {k: v for k, v in locals().items() if k in FlowSettings.__slots__}
    given |= {"stop": stop or {}}
    if maps is None:
        del given["maps"]
    settings = FlowSettings(**given)
    run_flow(RunSettings(init, output, steps, max(1, prompts * group), **keys), settings)


def run_flow(run: RunSettings, settings: FlowSettings) -> None:
    """Loads generator and verifiers, trains, and writes the weights.

    Raises:
        RunError: the folder cannot be used; or a limit of `stop` is passed, and the run is kept
            before that.
    """
    check_run_folder(run.output, asdict(run) | asdict(settings), settings.free_keys)
    accelerator = start_processes(run)
    training = assemble_flow(run, settings, accelerator)
    try:
        broken = train_flow(training, run)
    finally:
        training.close()
    accelerator.end_training()
    if broken is not None:
        raise broken


def train_flow(training: FlowTraining, run: RunSettings) -> RunError | None:
    """Takes the steps that are left, and writes the weights when they end or the time is up.

    Returns:
        The error of a limit that is passed: the run is kept before it is raised.

    Raises:
        TTSError: a verifier fails, no picture of a step has a reward, or losses are no numbers.
            State and weights are kept before that.
        KeyboardInterrupt, SystemExit: there was a signal; likewise, unless Ctrl-C came twice.
    """
    accelerator, settings, updater = training.accelerator, training.settings, training.updater
    deciding = asdict(run) | asdict(settings)
    free = settings.free_keys
    deciding = {key: value for key, value in deciding.items() if key not in free}
    kept: dict[str, Any] = {"guard": updater.guard, "captions": training.pool}
    path = Path(run.output)
    folder = RunFolder(path, deciding, accelerator, entry="flow", kept=kept, free=free)
    first = folder.resume()
    accelerator.init_trackers("flow", plain_values(deciding))
    rows: list[Mapping[str, float]] = [*read_metrics(folder.folder)]
    if training.evaluation is not None:
        training.evaluation.warm_up()
    interruption, broken = Interruption(), None
    clock = Clock(run, first, interruption)
    with interruption, ThreadPoolExecutor(1, "verify") as thread:
        ahead = DrawnAhead(training, thread, first)
        for step in range(first, run.steps):
            rate = run.learning_rate_at(step)
            try:
                # Of the weights before the step; the first time before other threads work.
                with failing_together(accelerator):
                    found = _evaluate(training, step)
                row = flow_step(training, ahead, step, rate, last=step + 1 == run.steps)
            except TTSError:
                # Such as a server that does not answer: what was trained so far is kept.
                ahead.forget()
                if run.save_state and step:
                    folder.save(step)
                folder.save_metrics()
                write_weights_of(training, run, folder.folder / CHECKPOINT)
                raise
            row |= {"step": step, "learning_rate": rate, **found}
            flags = _summed(accelerator, clock.flags())
            rows.append(row)
            judge = settings.judges[0]["verifier"] if settings.judges else None
            broken = broken_rule(settings.stop, rows, judge)
            last = flags["stop"] > 0 or broken is not None or step + 1 == run.steps
            record_step(
                row,
                run,
                folder,
                clock,
                accelerator,
                updater.guard,
                save=flags["save"] > 0,
                last=last,
            )
            if last:
                break
    write_weights_of(training, run, folder.folder / CHECKPOINT)
    interruption.raise_if_asked()
    return broken


def flow_step(
    training: FlowTraining, ahead: DrawnAhead, step: int, rate: float, *, last: bool
) -> dict[str, float]:
    """Draws pictures, rewards them and updates the generator.

    Returns:
        The metrics over all processes.

    Raises:
        RunError: no picture has a reward, or loss or gradient were not finite in too many steps.
    """
    settings = training.settings
    # All parts end by waiting for their results. Waiting for the whole device is forbidden while
    # the verifier's thread captures a graph.
    seconds = Seconds(torch.device("cpu"))
    with failing_together(training.accelerator):
        drawn, chosen, judged = ahead.take(step, seconds, last=last)
    found, rewards, passed = compare_step(training, judged)
    pictures = rewards.numel()
    scored = int(found.counts.sum())
    if not scored:
        said = f" The verifier says of one: {judged.reason!r:.300}." if judged.reason else ""
        raise RunError(
            f"Rewards must be numbers, and none of the {pictures} pictures of step {step} has one"
            f"{', with a map' if judged.maps is not None else ''}.{said} Check the verifier with "
            "tts-score on pictures of the generator, or name other scores in objective."
        )
    if passed is not None:
        training.pool.note(chosen, passed.all(1).tolist())
    share = training.accelerator.process_index * len(judged.rewards)
    own = found.values.flatten(0, 1)[share : share + len(judged.rewards)]
    seed = seed_for(training.seed, f"process {training.accelerator.process_index}", step, "flow")
    with seconds.of("update"):
        updated = training.updater.step(step, seed, drawn, own.to(training.model.device), rate)
    row = {
        "reward": mean_of(rewards.flatten().numpy()),
        **{f"reward_{name}": mean_of(values) for name, values in judged.terms.items()},
        "no_variance_share": 1 - float(found.varies.float().mean()),
        "unscored_share": 1 - scored / pictures,
        "rows": float(pictures),
        **metrics_of(updated, settings.loss),
        **{f"seconds_{part}": spent for part, spent in seconds.spent.items()},
    }
    if passed is not None:
        row["passed_share"] = float(passed.float().mean())
    return row


@contextmanager
def failing_together(accelerator: Accelerator) -> Iterator[None]:
    """Raises a TTSError of one process in all of them, before others wait for it.

    Raises:
        TTSError: that of this process, or a RunError if only others have one.
    """
    own: TTSError | None = None
    try:
        yield
    except TTSError as error:
        own = error
    failed = _summed(accelerator, {"failed": float(own is not None)})["failed"]
    if own is not None:
        raise own
    if failed:
        raise RunError("The verifier of another process failed; that process says why.")


def compare_step(
    training: FlowTraining, judged: Judged
) -> tuple[Advantages, Tensor, Tensor | None]:
    """Compares the pictures of all processes.

    Returns:
        The advantages, the rewards (G, N) without the bonus, and which of them pass; None if no
        reward is enough.
    """
    settings, accelerator = training.settings, training.accelerator
    rewards = _gathered(accelerator, torch.from_numpy(judged.rewards)).view(-1, settings.group)
    passed = None if settings.passes_at is None else rewards >= settings.passes_at - 1e-6
    maps = judged.maps
    if maps is not None:
        maps = _gathered(accelerator, maps).unflatten(0, rewards.shape)
    found = compare_pictures(
        settings.advantage,
        rewards if passed is None else rewards + settings.pass_bonus * passed,
        maps,
        deviation=settings.deviation,
        most=settings.most_advantage,
        penalty=settings.penalty,
    )
    return found, rewards, passed


def write_weights_of(training: FlowTraining, run: RunSettings, folder: Path) -> None:
    """Writes the averaged weights, or those of the policy if there is no average."""
    if training.accelerator.is_main_process:
        dtype = getattr(torch, run.dtype)
        with written_to(folder, "the trained weights"):
            training.model.write(folder, training.weights.module("average"), dtype)
        print(f"The weights: {folder}", flush=True)
    training.accelerator.wait_for_everyone()


def _evaluate(training: FlowTraining, step: int) -> dict[str, float]:
    if training.evaluation is None or step % training.settings.evaluate_every:
        return {}
    found = training.evaluation()
    listed = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    print(f"after {step} steps, held-out captions: {listed}", flush=True)
    return found


def _gathered(accelerator: Accelerator, values: Tensor) -> Tensor:
    if accelerator.num_processes == 1:
        return values
    gathered: Tensor = accelerator.gather(values.to(accelerator.device).contiguous())
    return gathered.cpu()


def _summed(accelerator: Accelerator, values: Mapping[str, float]) -> dict[str, float]:
    summed = accelerator.reduce(
        torch.tensor([*values.values()], device=accelerator.device), "sum"
    ).tolist()
    return dict(zip(values, summed, strict=True))
