"""What is trained, and the loss of a block as one call, which processes and precisions wrap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tts_verifier.errors import InputError
from tts_verifier.loading.files import file_inside
from tts_verifier.training.cold_start.batches import RowBlock
from tts_verifier.training.cold_start.settings import RunSettings
from tts_verifier.training.common.bounds import check_rank
from tts_verifier.training.common.run_folder import written_to
from tts_verifier.training.verifier.preprocess import DevicePreprocess
from tts_verifier.training.verifier.sft_loss import IGNORED, loss, text_loss
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint, find_checkpoint
from tts_verifier.verifiers.imagedoctor.checkpoint.save import (
    stored_state,
    write_config,
    write_weights,
)
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel, Outputs

HEADS: Final = ("text_hidden_fcs", "image_hidden_fcs", "prompt_encoder", "heatmap")
"""The parts of the model that give heatmaps."""
NEVER_RUN: Final = ("point_embed", "mask_downscaling")
"""Parts of the prompt encoder that are stored and never run."""
LORA_TARGETS: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
"""The matrices of the language model that get adapters."""
TRAINED_SHARD_BYTES: Final = 4 * 2**30
"""The largest size of a shard of a trained checkpoint."""


class ColdStartNetwork(nn.Module):
    """The model and the losses of a block.

    Args:
        checkpoint: its model is trained in place.
        source: side of the blocks' pictures; None = the network's own size.
        map_weight: of both map errors; 0 leaves the heads out. None = the checkpoint's.
        answer_weight: of the answers without reasons as a loss of their own.
        train_tower: whether the vision tower is trained.
        lora_rank: of adapters in the language model; 0 = all weights are trained.
        recompute: whether the language model's activations are computed again in the backward
            pass (gradient checkpointing).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        source: int | None = None,
        map_weight: float | None = None,
        answer_weight: float = 0.0,
        train_tower: bool = False,
        lora_rank: int = 0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.model = checkpoint.model
        self.preprocess = DevicePreprocess(checkpoint.processor, source)
        self.map_weight = self.model.config.heatmap.weight if map_weight is None else map_weight
        self.answer_weight, self.train_tower = answer_weight, train_tower
        self.grid = checkpoint.processor.grid
        choose_trained(self.model, heads=self.map_weight > 0, tower=train_tower)
        if lora_rank:
            add_adapters(self.model, lora_rank)
        if recompute:
            recompute_activations(self.model.model)
        self.train()

    def forward(self, block: RowBlock, shares: Tensor) -> dict[str, Tensor]:
        """Computes the losses of a block.

        Args:
            block: on the model's device.
            shares: (4,), how much of a step's `RowBlock.counts` this block has. A step's
                mean is the sum of its blocks' means, weighted so.

        Returns:
            `total`, which is minimised, `text`, and where they are trained `answers`,
            `misalignment` and `artifact`; all weighted with their shares.
        """
        outputs = self._outputs(block)
        text_share, alone_share, misalignment_share, artifact_share = shares.unbind()
        maps = {}
        if self.map_weight:
            merge = self.preprocess.merge
            cells = (self.grid[0] // merge, self.grid[1] // merge)
            targets = (block.maps.float() / 255).masked_fill(
                ~block.known[..., None, None], torch.nan
            )
            losses = loss(self.model, outputs, block.labels, targets, grid=cells)
            text = losses.text * text_share
            maps = {
                "misalignment": losses.misalignment * misalignment_share,
                "artifact": losses.artifact * artifact_share,
            }
        else:
            text = text_loss(outputs.logits, block.labels) * text_share
        total = text + self.map_weight * sum(maps.values(), torch.zeros_like(text))
        named = {"text": text, **maps}
        if self.answer_weight:
            labels = block.labels.masked_fill(~block.alone[:, None], IGNORED)
            named["answers"] = text_loss(outputs.logits, labels) * alone_share
            total = total + self.answer_weight * named["answers"]
        return {"total": total, **named}

    def _outputs(self, block: RowBlock) -> Outputs:
        """Runs the network; states and logits are those of the reply alone."""
        model, grids = self.model, [self.grid] * len(block.ids)
        with torch.set_grad_enabled(self.train_tower and torch.is_grad_enabled()):
            visual = model.visual_features(self.preprocess(block.pixels), grids)
        positions, _ = model.positions(block.ids, grids)
        hidden = model.language(model.embed(block.ids, visual), positions)
        places = block.reply[..., None].expand(-1, -1, hidden.shape[-1])
        replying = hidden.gather(1, places)
        return Outputs(replying, visual, model.lm_head(replying))


def recompute_activations(language_model: Any) -> None:
    """Makes transformers compute each layer's activations again in the backward pass."""
    # transformers 5 has renamed it on the way.
    enable = getattr(language_model, "activation_checkpointing_enable", None)
    (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})


def choose_trained(model: ImageDoctorModel, *, heads: bool, tower: bool) -> None:
    """Lets gradients reach the language model, and the heads and the tower if they are trained."""
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        trained = (part != "visual" or tower) and (part not in HEADS or heads)
        parameter.requires_grad_(trained and not any(n in name for n in NEVER_RUN))


def add_adapters(model: ImageDoctorModel, rank: int) -> None:
    """Adds LoRA adapters to the language model (Hu et al. 2021), and freezes all else of it.

    The rows of both heatmap tokens in the embedding stay trained: they are new.

    Raises:
        InputError: peft is not installed, or the rank is above those of all layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(
            "lora_rank needs the package peft, which is not installed. Install it: "
            "pip install 'tts-verifier[train]'.",
            argument="lora_rank",
        ) from error
    trained = [p for n, p in model.named_parameters() if p.requires_grad and n.startswith(HEADS)]
    check_rank(rank, [m for n, m in model.model.named_modules() if n.endswith(LORA_TARGETS)])
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LORA_TARGETS))
    inject_adapter_in_model(config, model.model)
    for name, parameter in model.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for parameter in trained:
        parameter.requires_grad_(True)
    embedding = model.model.embed_tokens.weight.requires_grad_(True)
    new = torch.zeros(len(embedding), 1)
    new[[model.config.misalignment_token_id, model.config.artifact_token_id]] = 1
    embedding.register_hook(lambda gradient: gradient * new.to(gradient))
    if not model.config.tied:
        model.lm_head.weight.requires_grad_(False)


def parameter_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Splits trained parameters into matrices, which decay, and the others, which do not."""
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    # Decay would move the rows of an embedding that no gradient reaches.
    decays = {n for n, p in named if p.dim() > 1 and "embed_tokens" not in n}
    return [
        {"params": [p for n, p in named if n in decays], "weight_decay": decay},
        {"params": [p for n, p in named if n not in decays], "weight_decay": 0.0},
    ]


def merged_state(model: ImageDoctorModel) -> Mapping[str, Tensor]:
    """Returns the tensors of a checkpoint, with adapters added to the matrices that they adapt."""
    deltas: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            deltas[f"{name}.weight"] = module.get_delta_weight("default").detach()
    state = {}
    for name, tensor in stored_state(model).items():
        official = name.replace(".base_layer.", ".")
        if "lora_" not in name:
            state[official] = tensor + deltas[official] if official in deltas else tensor
    return state


def write_trained(model: ImageDoctorModel, run: RunSettings, accelerator: Accelerator) -> None:
    """Writes a trained model into the run's folder, with the small files that it started from.

    Raises:
        RunError: it cannot be written.
    """
    if accelerator.is_main_process:
        folder, dtype = Path(run.output, "checkpoint"), getattr(torch, run.dtype)
        with written_to(folder, "the trained weights"):
            copy_small_files(find_checkpoint(run.init), folder)
            write_config(folder, model.config, dtype)
            write_weights(folder, merged_state(model), dtype=dtype, shard_bytes=TRAINED_SHARD_BYTES)
        print(f"The checkpoint: {folder}", flush=True)
    accelerator.wait_for_everyone()


def copy_small_files(source: Path, folder: Path) -> None:
    """Copies the files of a checkpoint that are neither weights nor their index.

    Raises:
        CheckpointError: one is a link out of the folder, or no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt", ".jinja") and "index" not in path.name:
            (folder / path.name).write_bytes(file_inside(source, path.name).read_bytes())
