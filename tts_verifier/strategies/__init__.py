"""Strategies decide which candidates to generate next; one algorithm per file.

A strategy keeps no state: one object may serve many prompts and threads.
"""

from tts_verifier.strategies.adaptive import Adaptive
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.fk_steering import FKSteering
from tts_verifier.strategies.inpaint_reroll import InpaintReroll
from tts_verifier.strategies.search_over_paths import SearchOverPaths
from tts_verifier.strategies.seed_beam import SeedBeam
from tts_verifier.strategies.spectral import Spectral
from tts_verifier.strategies.successive_halving import SuccessiveHalving
from tts_verifier.strategies.zero_order import ZeroOrder

__all__ = [
    "Adaptive",
    "BestOfN",
    "FKSteering",
    "InpaintReroll",
    "SearchOverPaths",
    "SeedBeam",
    "Spectral",
    "SuccessiveHalving",
    "ZeroOrder",
]
