"""How well a verifier agrees with a known truth: metrics, and the tables that papers publish."""

from tts_verifier.evaluation.heatmap_metrics import (
    EMPTY_MEASURES,
    MEASURES,
    auc_judd,
    heatmap_metrics,
    resized,
)
from tts_verifier.evaluation.metrics import auc, box_iou, plcc, srcc
from tts_verifier.evaluation.rated import RatedPicture

__all__ = [
    "EMPTY_MEASURES",
    "MEASURES",
    "RatedPicture",
    "auc",
    "auc_judd",
    "box_iou",
    "heatmap_metrics",
    "plcc",
    "resized",
    "srcc",
]
