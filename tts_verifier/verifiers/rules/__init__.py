"""Verifiers that apply a rule to what a small network finds in the image."""
