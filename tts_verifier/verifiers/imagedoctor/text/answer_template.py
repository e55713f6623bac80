"""The answer as a template: the model fills in the digits, everything else is given.

In answer-only mode the model always writes the same text except for its numbers (see the format
in the instruction, and the reward's regular expressions in doctor_hp.py). With the template it
reads the fixed text between two numbers in one step, together with the digit before it, and
chooses among digits only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.requests import ForcedStep
from tts_verifier.verifiers.imagedoctor.text.expected_scores import ScoreTokens
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

# The official reward's patterns need the semicolons after the first three scores.
TEMPLATE_TEXT: Final = (
    "Semantic Alignment score: 0.00; Misalignment Locations: <|misalignment|>; "
    "Aesthetic score: 0.00; Plausibility score: 0.00; Artifact Locations: <|artifact|>; "
    "Overall Impression score: 0.00</answer>"
)
"""The answer; the model replaces the digits of each 0.00."""


@dataclass(frozen=True, slots=True)
class AnswerTemplate:
    """The template in tokens; the default is an empty one, which gives nothing to the model."""

    before: tuple[int, ...] = ()
    """Fixed tokens before the first digit; they are read with the prompt."""
    forced_steps: tuple[ForcedStep, ...] = ()
    """The steps of decoding: a digit that is chosen, and the fixed tokens that follow it."""
    after: tuple[int, ...] = ()
    """Fixed tokens after the last digit; the model never reads them."""

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PromptTokenizer, config: ImageDoctorConfig
    ) -> AnswerTemplate:
        """Cuts `TEMPLATE_TEXT` into fixed tokens and digits to choose.

        Raises:
            InputError: the tokenizer does not write scores digit by digit.
        """
        score_tokens = ScoreTokens.from_tokenizer(tokenizer)
        if score_tokens is None:
            raise InputError(
                "answer_template needs a checkpoint whose tokenizer writes scores digit by digit; "
                "this one's does not. Leave answer_template out.",
                argument="answer_template",
            )
        special = {
            "<|misalignment|>": config.misalignment_token_id,
            "<|artifact|>": config.artifact_token_id,
        }
        steps: list[ForcedStep] = []
        fixed: list[int] = []
        before: tuple[int, ...] = ()
        # The group makes `split` return the separators too: numbers and special tokens.
        for part in re.split(r"(0\.00|<\|\w+\|>)", TEMPLATE_TEXT):
            # By id, because `encode` makes ordinary text of a special token's name.
            if part in special:
                fixed.append(special[part])
            elif part != "0.00":
                fixed += tokenizer.encode(part)
            else:
                # The fixed text since the last number follows that number's last digit.
                if steps:
                    steps[-1] = ForcedStep(steps[-1].choices, tuple(fixed))
                else:
                    before = tuple(fixed)
                unit, decimal = (
                    ForcedStep(score_tokens.units, score_tokens.point),
                    ForcedStep(score_tokens.digits),
                )
                steps += [unit, decimal, decimal]
                fixed = []
        return cls(before, tuple(steps), tuple(fixed))
