"""Trains the bundled generator, a miniature Stable Diffusion 3."""
