"""Statistics that say how well a verifier agrees with a known truth."""

from tts_verifier.evaluation.metrics import auc, box_iou, correlation

__all__ = ["auc", "box_iou", "correlation"]
