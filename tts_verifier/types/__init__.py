"""The nouns of the package: frozen values that flow forward from prompt to choice."""

from tts_verifier.types.cost import Budget, Cost
from tts_verifier.types.proposals import (
    KINDS,
    VERIFIES_ONLY,
    Compare,
    Continue,
    Draw,
    Look,
    LowBand,
    Mask,
    Near,
    Prompt,
    Proposal,
    Repaint,
    Setting,
    kind_of,
    parent_of,
)
from tts_verifier.types.stored import Decoder, InFile, InMemory, Stored, path_of
from tts_verifier.types.trials import Choice, Job, Sample, State, Task, Trial
from tts_verifier.types.verdicts import Box, Detail, Heatmap, Heatmaps, Verdict

__all__ = [
    "KINDS",
    "VERIFIES_ONLY",
    "Box",
    "Budget",
    "Choice",
    "Compare",
    "Continue",
    "Cost",
    "Decoder",
    "Detail",
    "Draw",
    "Heatmap",
    "Heatmaps",
    "InFile",
    "InMemory",
    "Job",
    "Look",
    "LowBand",
    "Mask",
    "Near",
    "Prompt",
    "Proposal",
    "Repaint",
    "Sample",
    "Setting",
    "State",
    "Stored",
    "Task",
    "Trial",
    "Verdict",
    "kind_of",
    "parent_of",
    "path_of",
]
