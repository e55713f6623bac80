"""Trains the bundled verifier, a miniature ImageDoctor."""
