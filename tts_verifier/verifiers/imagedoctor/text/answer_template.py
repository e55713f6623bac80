"""An answer of which only the digits are asked for: the rest is known beforehand.

In answer-only mode the reply is always the same text but for its numbers (see the format in
the instruction, and the reward's regular expressions in doctor_hp.py). What is known is read
several tokens at a time, with the digit before it; the model chooses among digits only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tts_verifier.verifiers.imagedoctor.generation import ForcedStep
from tts_verifier.verifiers.imagedoctor.model.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.text.expected_scores import Numerals
from tts_verifier.verifiers.imagedoctor.text.instruction import Words

ANSWER: Final = (
    "Semantic Alignment score: 0.00; Misalignment Locations: <|misalignment|>; "
    "Aesthetic score: 0.00; Plausibility score: 0.00; Artifact Locations: <|artifact|>; "
    "Overall Impression score: 0.00</answer>"
)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """`before`: read with the prompt. `turns`: see `ForcedStep`. `after`: known, never read."""

    before: tuple[int, ...] = ()
    turns: tuple[ForcedStep, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def of(cls, words: Words, config: ImageDoctorConfig, numerals: Numerals) -> Skeleton:
        """Cuts `ANSWER` into what is known and what is chosen."""
        special = {
            "<|misalignment|>": config.misalignment_token_id,
            "<|artifact|>": config.artifact_token_id,
        }
        turns: list[ForcedStep] = []
        known: list[int] = []
        before: tuple[int, ...] = ()
        for part in re.split(r"(0\.00|<\|\w+\|>)", ANSWER):
            if part in special:
                known.append(special[part])
            elif part != "0.00":
                known += words.encode(part)
            else:
                if turns:
                    turns[-1] = ForcedStep(turns[-1].choices, tuple(known))
                else:
                    before = tuple(known)
                turns += [
                    ForcedStep(numerals.units, numerals.point),
                    *[ForcedStep(numerals.digits)] * 2,
                ]
                known = []
        return cls(before, tuple(turns), tuple(known))
