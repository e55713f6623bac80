"""What the checkpoint of a stage says of pictures that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from tts_verifier.training.cold_start.settings import MINIATURE, RunSettings, StageSettings
from tts_verifier.training.examples import (
    Examples,
    examples_of,
    miniature_examples,
    try_examples,
)
from tts_verifier.verifiers.imagedoctor.verifier import ImageDoctor


def show_examples(run: RunSettings, stage: StageSettings, step: int, device: torch.device) -> None:
    """Writes what the checkpoint of a run says of held-out pictures."""
    output = Path(run.output)

    def choose() -> Examples:
        if stage.data == MINIATURE:
            return miniature_examples(run.examples)
        return examples_of(Path(stage.data), stage.split, run.examples)

    try_examples(
        output,
        lambda: ImageDoctor.from_pretrained(output / "checkpoint", device=device),
        choose,
        step=step,
        detail="score" if stage.stage == 1 else "diagnose",
    )
