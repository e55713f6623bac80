"""Trains the verifier, and the bundled models of the miniature world."""
