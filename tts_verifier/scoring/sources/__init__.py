"""Finds the pictures that a command names and their prompts, without a list of them in memory."""
