"""Better images at inference time: generate candidates, diagnose them, keep or repair the best.

Each public name is imported when it is first used, so importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts_verifier.choice.objective import Objective
    from tts_verifier.choice.ranking import Ranking
    from tts_verifier.errors import TTSError
    from tts_verifier.interfaces import Generator, Strategy, Verifier
    from tts_verifier.runner import run
    from tts_verifier.strategies.best_of_n import BestOfN
    from tts_verifier.types import Prompt, Verdict
    from tts_verifier.verified.pipeline import VerifiedPipeline, wrap

__version__ = "0.1.0"

_MODULE_OF = {
    "BestOfN": "strategies.best_of_n",
    "Generator": "interfaces",
    "Objective": "choice",
    "Prompt": "types",
    "Ranking": "choice",
    "Strategy": "interfaces",
    "TTSError": "errors",
    "Verdict": "types",
    "VerifiedPipeline": "verified",
    "Verifier": "interfaces",
    "run": "runner",
    "wrap": "verified",
}

__all__ = [
    "BestOfN",
    "Generator",
    "Objective",
    "Prompt",
    "Ranking",
    "Strategy",
    "TTSError",
    "Verdict",
    "VerifiedPipeline",
    "Verifier",
    "run",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tts_verifier' has no attribute {name!r}")
    return getattr(import_module(f"tts_verifier.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
