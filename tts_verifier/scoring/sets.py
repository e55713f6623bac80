"""Of the pictures of each prompt, some that are good and differ from one another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from tts_verifier.choice.subset import choose_subset, layout_and_colour
from tts_verifier.images import as_image
from tts_verifier.scoring.rows import OBJECTIVE, ScoreRow, sorted_rows, value_of
from tts_verifier.scoring.thresholds import place_on_disk

_COMPARED: Final = 1000
"""Pictures of a prompt among which a set is chosen, the best ones: all their pairs are compared."""


def rows_of_sets(rows: Iterable[ScoreRow], k: int, by: str = OBJECTIVE) -> list[ScoreRow]:
    """Returns the rows of `k` good and different pictures of each prompt.

    The best picture of a prompt comes first; see `choice.subset` for what else is chosen. A picture
    whose score is not known is in no set, and is not read. Of more than 1,000 pictures of a prompt
    the best 1,000 are considered. One picture is in memory at a time.

    Args:
        rows: of pictures that are files.
        k: pictures of each prompt; where fewer have a score, these.
        by: the score that says which picture is better.

    Raises:
        InputError: a picture cannot be read any more.
    """
    groups: dict[str, list[ScoreRow]] = {}
    for row in sorted_rows([row for row in rows if not np.isnan(value_of(row, by))], by):
        group = groups.setdefault(row.get("prompt", ""), [])
        if len(group) < _COMPARED:
            group.append(row)
    chosen: list[ScoreRow] = []
    for group in groups.values():
        places = [place_on_disk(row["image"]) for row in group]
        features = [layout_and_colour([as_image(place)])[0] for place in places]
        values = [value_of(row, by) for row in group]
        chosen += [group[i] for i in choose_subset(values, np.array(features), k)]
    return chosen
