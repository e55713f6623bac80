"""Generators: they turn proposals into images."""
