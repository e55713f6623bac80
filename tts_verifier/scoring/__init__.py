"""Scores images that exist already against their prompts; `tts-score` is its command.

Scores are written as they come, so a stopped command can continue. Each row has a key: a hash of
the image's bytes, the prompt and the verifier's settings. A file that changed is therefore scored
again, and an unchanged one is not. For collections of any size, `score_into_parts` writes a folder
of Parquet parts in constant memory; `SCORING.md` says how.
"""

from tts_verifier.scoring.distributed import score_with_workers
from tts_verifier.scoring.output import score_into, score_pairs_into
from tts_verifier.scoring.parts import Parts, score_into_parts
from tts_verifier.scoring.rows import (
    ScoreRow,
    ScoreSummary,
    best_rows,
    format_rows,
    sorted_rows,
)
from tts_verifier.scoring.score import PairScorer, score_files, score_pairs, scored
from tts_verifier.scoring.sets import rows_of_sets
from tts_verifier.scoring.sources.find import find_images
from tts_verifier.scoring.sources.pairs import Pair, is_table, pairs_of, read_pairs
from tts_verifier.scoring.sources.source import PairSource, open_pairs
from tts_verifier.scoring.thresholds import Limit, PictureFolder, parse_limits, within

__all__ = [
    "Limit",
    "Pair",
    "PairScorer",
    "PairSource",
    "Parts",
    "PictureFolder",
    "ScoreRow",
    "ScoreSummary",
    "best_rows",
    "find_images",
    "format_rows",
    "is_table",
    "open_pairs",
    "pairs_of",
    "parse_limits",
    "read_pairs",
    "rows_of_sets",
    "score_files",
    "score_into",
    "score_into_parts",
    "score_pairs",
    "score_pairs_into",
    "score_with_workers",
    "scored",
    "sorted_rows",
    "within",
]
