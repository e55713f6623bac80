"""Trains the bundled verifier."""
