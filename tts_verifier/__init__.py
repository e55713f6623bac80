"""Better images at inference time: generate candidates, diagnose them, keep or repair the best.

Each public name is imported when it is first used, so importing the package loads no torch.
`dir(tts_verifier)` lists them: `run` and `wrap`, every strategy, verifier, judge, generator and
rewriter that recipes can name, and the values that these take and return.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts_verifier.choice.objective import Objective
    from tts_verifier.choice.ranking import Ranking
    from tts_verifier.errors import TTSError
    from tts_verifier.generators.diffusers import DiffusersGenerator
    from tts_verifier.interfaces import Generator, Strategy, Verifier
    from tts_verifier.runner import RunResult, run
    from tts_verifier.shapes.rewriter import ShapesRewriter
    from tts_verifier.shapes.simulated import SimulatedGenerator
    from tts_verifier.shapes.verifiers import JudgeVerifier, OracleVerifier
    from tts_verifier.strategies.adaptive import Adaptive
    from tts_verifier.strategies.best_of_n import BestOfN
    from tts_verifier.strategies.common.chat_rewriter import ChatRewriter
    from tts_verifier.strategies.drafts import Drafting
    from tts_verifier.strategies.fk_steering import FKSteering
    from tts_verifier.strategies.inpaint_reroll import InpaintReroll
    from tts_verifier.strategies.reflection import Reflection
    from tts_verifier.strategies.search_over_paths import SearchOverPaths
    from tts_verifier.strategies.seed_beam import SeedBeam
    from tts_verifier.strategies.spectral import Spectral
    from tts_verifier.strategies.successive_halving import SuccessiveHalving
    from tts_verifier.strategies.zero_order import ZeroOrder
    from tts_verifier.types import Budget, Prompt, Trial, Verdict
    from tts_verifier.verified import VerifiedPipeline, wrap
    from tts_verifier.verifiers.contrastive.aesthetic import Aesthetic
    from tts_verifier.verifiers.contrastive.clip import ClipScore, PickScore
    from tts_verifier.verifiers.contrastive.hpsv2 import HPSv2
    from tts_verifier.verifiers.contrastive.imagereward import ImageReward
    from tts_verifier.verifiers.ensemble import Ensemble
    from tts_verifier.verifiers.imagedoctor import ImageDoctor
    from tts_verifier.verifiers.load import load_verifier
    from tts_verifier.verifiers.openai import OpenAIVerifier
    from tts_verifier.verifiers.remote import Remote
    from tts_verifier.verifiers.rules.detector import DetectorVerifier
    from tts_verifier.verifiers.rules.ocr import OCRVerifier
    from tts_verifier.verifiers.vision_language.hpsv3 import HPSv3
    from tts_verifier.verifiers.vision_language.soft_tifa import SoftTIFA
    from tts_verifier.verifiers.vision_language.unifiedreward import UnifiedReward, VisualQuality
    from tts_verifier.verifiers.vision_language.vqascore import VQAScore

__version__ = "0.1.0"

_MODULE_OF = {
    "Adaptive": "strategies.adaptive",
    "Aesthetic": "verifiers.contrastive.aesthetic",
    "BestOfN": "strategies.best_of_n",
    "Budget": "types",
    "ChatRewriter": "strategies.common.chat_rewriter",
    "ClipScore": "verifiers.contrastive.clip",
    "DetectorVerifier": "verifiers.rules.detector",
    "DiffusersGenerator": "generators.diffusers",
    "Drafting": "strategies.drafts",
    "Ensemble": "verifiers.ensemble",
    "FKSteering": "strategies.fk_steering",
    "Generator": "interfaces",
    "HPSv2": "verifiers.contrastive.hpsv2",
    "HPSv3": "verifiers.vision_language.hpsv3",
    "ImageDoctor": "verifiers.imagedoctor",
    "ImageReward": "verifiers.contrastive.imagereward",
    "InpaintReroll": "strategies.inpaint_reroll",
    "JudgeVerifier": "shapes.verifiers",
    "OCRVerifier": "verifiers.rules.ocr",
    "Objective": "choice.objective",
    "OpenAIVerifier": "verifiers.openai",
    "OracleVerifier": "shapes.verifiers",
    "PickScore": "verifiers.contrastive.clip",
    "Prompt": "types",
    "Ranking": "choice.ranking",
    "Reflection": "strategies.reflection",
    "Remote": "verifiers.remote",
    "RunResult": "runner",
    "SearchOverPaths": "strategies.search_over_paths",
    "SeedBeam": "strategies.seed_beam",
    "ShapesRewriter": "shapes.rewriter",
    "SimulatedGenerator": "shapes.simulated",
    "SoftTIFA": "verifiers.vision_language.soft_tifa",
    "Spectral": "strategies.spectral",
    "Strategy": "interfaces",
    "SuccessiveHalving": "strategies.successive_halving",
    "TTSError": "errors",
    "Trial": "types",
    "UnifiedReward": "verifiers.vision_language.unifiedreward",
    "VQAScore": "verifiers.vision_language.vqascore",
    "Verdict": "types",
    "VerifiedPipeline": "verified",
    "Verifier": "interfaces",
    "VisualQuality": "verifiers.vision_language.unifiedreward",
    "ZeroOrder": "strategies.zero_order",
    "load_verifier": "verifiers.load",
    "run": "runner",
    "wrap": "verified",
}

__all__ = [
    "Adaptive",
    "Aesthetic",
    "BestOfN",
    "Budget",
    "ChatRewriter",
    "ClipScore",
    "DetectorVerifier",
    "DiffusersGenerator",
    "Drafting",
    "Ensemble",
    "FKSteering",
    "Generator",
    "HPSv2",
    "HPSv3",
    "ImageDoctor",
    "ImageReward",
    "InpaintReroll",
    "JudgeVerifier",
    "OCRVerifier",
    "Objective",
    "OpenAIVerifier",
    "OracleVerifier",
    "PickScore",
    "Prompt",
    "Ranking",
    "Reflection",
    "Remote",
    "RunResult",
    "SearchOverPaths",
    "SeedBeam",
    "ShapesRewriter",
    "SimulatedGenerator",
    "SoftTIFA",
    "Spectral",
    "Strategy",
    "SuccessiveHalving",
    "TTSError",
    "Trial",
    "UnifiedReward",
    "VQAScore",
    "Verdict",
    "VerifiedPipeline",
    "Verifier",
    "VisualQuality",
    "ZeroOrder",
    "load_verifier",
    "run",
    "wrap",
]


# Hidden from type checkers, which would believe that every name exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            # Python adds "Did you mean: …?" from `__dir__`.
            raise AttributeError(f"module 'tts_verifier' has no attribute {name!r}")
        return getattr(import_module(f"tts_verifier.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
