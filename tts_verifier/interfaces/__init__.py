"""The interfaces of the parts: strategies, generators and verifiers.

Methods take lists and return lists of the same length in the same order. Third parties implement
these interfaces; `testing` has checks for each. `registry` finds the package's own classes by name.
"""

from tts_verifier.interfaces.options import ImageDoctorOptions
from tts_verifier.interfaces.parts import (
    Comparer,
    ExplainsLimits,
    Extendable,
    Generator,
    Movable,
    Placed,
    ReadsScores,
    Reflects,
    Rewriter,
    RewriteRequest,
    SaysMost,
    Strategy,
    check_returned,
    is_movable,
)
from tts_verifier.interfaces.verifier import (
    Verifier,
    check_detail,
    check_pairs,
    check_quick,
    check_verdicts,
    details_of,
    names_of_scores,
)

__all__ = [
    "Comparer",
    "ExplainsLimits",
    "Extendable",
    "Generator",
    "ImageDoctorOptions",
    "Movable",
    "Placed",
    "ReadsScores",
    "Reflects",
    "RewriteRequest",
    "Rewriter",
    "SaysMost",
    "Strategy",
    "Verifier",
    "check_detail",
    "check_pairs",
    "check_quick",
    "check_returned",
    "check_verdicts",
    "details_of",
    "is_movable",
    "names_of_scores",
]
