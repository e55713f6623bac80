"""Reinforcement fine-tuning of flow-matching generators by the scores and maps of verifiers."""
