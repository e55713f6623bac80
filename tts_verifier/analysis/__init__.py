"""What a log tells without a model: replays, reports and contact sheets.

Each public name is imported when it is first used, so that a command loads only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts_verifier.analysis.contact_sheet import write_chosen
    from tts_verifier.analysis.replay import Replay, replay_log, replay_trials
    from tts_verifier.analysis.replay_output import replay_text, write_plot
    from tts_verifier.analysis.report import write_report

_SUBMODULE_OF = {
    "Replay": "replay",
    "replay_log": "replay",
    "replay_text": "replay_output",
    "replay_trials": "replay",
    "write_chosen": "contact_sheet",
    "write_plot": "replay_output",
    "write_report": "report",
}

__all__ = [
    "Replay",
    "replay_log",
    "replay_text",
    "replay_trials",
    "write_chosen",
    "write_plot",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _SUBMODULE_OF:
        raise AttributeError(f"module 'tts_verifier.analysis' has no attribute {name!r}")
    return getattr(import_module(f"tts_verifier.analysis.{_SUBMODULE_OF[name]}"), name)
