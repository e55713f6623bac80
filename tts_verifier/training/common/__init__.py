"""What every training loop shares: the loop, CUDA graphs, replay pools."""
