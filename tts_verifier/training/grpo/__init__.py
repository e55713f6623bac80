"""Reinforcement fine-tuning of the verifier by group-relative policy optimisation (GRPO)."""
