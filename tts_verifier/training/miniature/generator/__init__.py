"""Trains the bundled generator."""
