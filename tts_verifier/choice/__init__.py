"""From verdicts to one number, to an order, and to what the choice was worth."""

from tts_verifier.choice.objective import OFFICIAL_WEIGHTS, Objective, choose, order
from tts_verifier.choice.rank_correlation import spearman
from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.choice.subset import choose_subset, layout_and_colour
from tts_verifier.choice.summary import (
    JudgeSummary,
    PromptSummary,
    Summary,
    summarise,
    summarise_prompt,
    wilson,
)
from tts_verifier.choice.summary_output import summary_text, summary_values

__all__ = [
    "OFFICIAL_WEIGHTS",
    "JudgeSummary",
    "Objective",
    "PromptSummary",
    "Ranked",
    "Ranking",
    "Summary",
    "choose",
    "choose_subset",
    "layout_and_colour",
    "order",
    "spearman",
    "summarise",
    "summarise_prompt",
    "summary_text",
    "summary_values",
    "wilson",
]
