"""Two independent readers of the miniature world's pictures, and what they read."""
