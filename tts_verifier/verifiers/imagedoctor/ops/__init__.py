"""Fused and hand-written operations that the engine and the model run on."""
