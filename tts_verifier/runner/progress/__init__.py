"""How far a run is, and how that is shown in a terminal or sent to another program."""

from tts_verifier.runner.progress.progress import Progress, ProgressCounts, RunStatus
from tts_verifier.runner.progress.views import (
    ProgressBar,
    ProgressLines,
    ProgressStyle,
    progress_view,
    status_json,
    status_line,
)

__all__ = [
    "Progress",
    "ProgressBar",
    "ProgressCounts",
    "ProgressLines",
    "ProgressStyle",
    "RunStatus",
    "progress_view",
    "status_json",
    "status_line",
]
