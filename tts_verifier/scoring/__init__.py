"""Scores images that exist already against their prompts; `tts-score` is its command.

Scores are written as they come, one line of JSON per image, so a stopped command can continue.
Each line has a key: a hash of the file's bytes, the prompt and the verifier's settings. A file
that changed is therefore scored again, and an unchanged one is not. A Parquet file is written from
the lines at the end.
"""

from tts_verifier.scoring.find import find_images
from tts_verifier.scoring.output import score_into, score_pairs_into
from tts_verifier.scoring.pairs import Pair, is_table, pairs_of, read_pairs
from tts_verifier.scoring.rows import ScoreRow, format_rows, sorted_rows
from tts_verifier.scoring.score import PairScorer, score_files, score_pairs

__all__ = [
    "Pair",
    "PairScorer",
    "ScoreRow",
    "find_images",
    "format_rows",
    "is_table",
    "pairs_of",
    "read_pairs",
    "score_files",
    "score_into",
    "score_pairs",
    "score_pairs_into",
    "sorted_rows",
]
