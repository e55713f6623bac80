"""Captions, instructions and replies as text and tokens."""
