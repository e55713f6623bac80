"""Released, folder or hub checkpoints in and out."""
