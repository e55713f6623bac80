"""The twelve rewards of ImageDoctor's reinforcement fine-tuning; REWARDS.md has their formulas."""

from tts_verifier.training.grpo.rewards.official import (
    GROUNDING_REWARDS,
    REWARDS,
    SCORE_REWARDS,
    Reward,
    RewardTable,
    total_rewards,
)

__all__ = [
    "GROUNDING_REWARDS",
    "REWARDS",
    "SCORE_REWARDS",
    "Reward",
    "RewardTable",
    "total_rewards",
]
