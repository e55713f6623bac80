"""Verdicts as rewards for trainers of generators: numbers by picture, and maps on the latent grid.

`VerifierReward` is the interface; `flow_grpo` and `verl_omni` have its shapes for these trainers.
`TRAINERS.md` says how to use them, and how from Flow-Factory.
"""

from tts_verifier.reward.reward import RewardOptions, Rewards, VerifierReward

__all__ = ["RewardOptions", "Rewards", "VerifierReward"]
