"""Images as the model takes them, and its grids back on the image."""
