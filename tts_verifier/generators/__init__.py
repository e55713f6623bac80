"""What draws: adapters that serve proposals with a diffusion pipeline."""
