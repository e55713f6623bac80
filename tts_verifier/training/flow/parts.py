"""The parts of a run of `tts-train flow`, made from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from tts_verifier.identity import seed_for
from tts_verifier.training.cold_start.settings import RunSettings
from tts_verifier.training.flow.captions import CaptionPool, captions_of, warn_of_trained
from tts_verifier.training.flow.evaluation import Evaluation
from tts_verifier.training.flow.model import FlowModel
from tts_verifier.training.flow.rewards import LoadedVerifier, VerifierSpec, WeightedRewards
from tts_verifier.training.flow.sampling import Sampler
from tts_verifier.training.flow.settings import FlowSettings, placed_at
from tts_verifier.training.flow.update import TrainedWeights, Updater


@dataclass(frozen=True, slots=True, eq=False)
class FlowTraining:
    """The parts that a run works with."""

    model: FlowModel
    """The pipeline."""
    weights: TrainedWeights
    """What is trained, and its copies."""
    updater: Updater
    """Takes the updates."""
    sampler: Sampler
    """Draws the pictures of steps."""
    rewards: WeightedRewards
    """Of the pictures."""
    evaluation: Evaluation | None
    """Of held-out captions; None without."""
    judges: Sequence[LoadedVerifier]
    """Those of the evaluation."""
    pool: CaptionPool
    """Of the captions of steps."""
    accelerator: Accelerator
    """Of the processes."""
    settings: FlowSettings
    """Of the run."""
    seed: int
    """Of the run."""

    def close(self) -> None:
        """Ends processes of verifiers."""
        self.rewards.close()
        for judge in self.judges:
            judge.close()


def assemble_flow(
    run: RunSettings, settings: FlowSettings, accelerator: Accelerator
) -> FlowTraining:
    """Makes the parts of a run.

    Raises:
        InputError, UnsupportedError, CheckpointError: settings, generator and verifiers do not
            fit together, or one cannot be loaded.
    """
    settings.share_of(0, accelerator.num_processes)
    specs = [VerifierSpec.read(s, "rewards") for s in settings.rewards]
    judge_specs = [VerifierSpec.read(s, "judges") for s in settings.judges]
    given = settings.map_verifier
    map_spec = None if given is None else VerifierSpec.read(given, "map_verifier")
    captions = captions_of(settings.captions, "captions")
    held = captions_of(settings.held_out, "held_out", held_out=True)[: settings.evaluate_captions]
    pool = CaptionPool(captions, settings.prompts, run.seed, settings.easy_weight)
    if settings.evaluate_every and not settings.captions == settings.held_out == "shapes":
        warn_of_trained(held, captions)
    device, autocast = accelerator.device, run.precision != "no"
    half = bool(run.lora_rank) and autocast and device.type == "cuda"
    model = FlowModel(
        run.init,
        device,
        dtype="bfloat16" if half else "float32",
        size=(settings.height, settings.width),
        max_sequence_length=settings.max_sequence_length,
        embedded_guidance=settings.embedded_guidance,
    )
    weights = make_weights(model, run, settings)
    accelerator.prepare_model(weights, device_placement=False, evaluation_mode=True)
    updater = Updater(
        model,
        weights,
        settings,
        accelerator,
        learning_rate=run.learning_rate,
        weight_decay=run.weight_decay,
        autocast=autocast,
    )
    rewards = WeightedRewards(
        specs,
        maps={} if settings.advantage == "scalar" else settings.maps,
        map_spec=None if settings.advantage == "scalar" else map_spec,
        grid=model.grid,
        device=str(device),
    )
    with placed_at("judges"):
        judges = [LoadedVerifier(spec, str(device)) for spec in judge_specs]
    sampler, average = make_samplers(model, weights, settings, updater.block, autocast=autocast)
    evaluation = None
    if settings.evaluate_every and held and accelerator.is_main_process:
        evaluation = Evaluation(average, held, rewards, judges, seed_for(0, "held out", 0, "flow"))
    return FlowTraining(
        model,
        weights,
        updater,
        sampler,
        rewards,
        evaluation,
        judges,
        pool,
        accelerator,
        settings,
        run.seed,
    )


def make_samplers(
    model: FlowModel, weights: TrainedWeights, settings: FlowSettings, block: int, *, autocast: bool
) -> tuple[Sampler, Sampler]:
    """Makes the samplers of steps and of evaluations."""
    sampler = Sampler(
        model,
        weights.module("sampler"),
        steps=settings.steps_drawn,
        guidance=settings.guidance,
        kind=settings.sampler if settings.loss == "policy" else None,
        trained_guidance=settings.trained_guidance,
        block=block,
        autocast=autocast,
    )
    average = Sampler(
        model,
        weights.module("average"),
        steps=settings.steps_drawn,
        guidance=settings.guidance,
        block=block,
        autocast=autocast,
    )
    return sampler, average


def make_weights(model: FlowModel, run: RunSettings, settings: FlowSettings) -> TrainedWeights:
    """Makes the transformer trainable, whole or by adapters, and its copies."""
    if run.lora_rank:
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            model.add_adapters(run.lora_rank, settings.lora_alpha, settings.lora_targets)
    else:
        model.transformer.requires_grad_(True)
    if run.recompute:
        model.recompute_in_backward()
    return TrainedWeights(model.transformer, settings)
