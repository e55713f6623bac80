"""Trains the bundled models of the miniature world: their sizes, data, stages and checks."""
