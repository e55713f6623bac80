"""From verdicts to one number, to an order, to what the choice was worth."""

from tts_verifier.choice.objective import OFFICIAL_WEIGHTS, Objective, Pick, choose, order
from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.choice.summary import (
    Judged,
    PromptSummary,
    Summary,
    summarise,
    summarise_prompt,
    wilson,
)

__all__ = [
    "OFFICIAL_WEIGHTS",
    "Judged",
    "Objective",
    "Pick",
    "PromptSummary",
    "Ranked",
    "Ranking",
    "Summary",
    "choose",
    "order",
    "summarise",
    "summarise_prompt",
    "wilson",
]
