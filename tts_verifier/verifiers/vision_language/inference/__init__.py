"""Loads image-text-to-text models of transformers, and asks them about images in batches."""
