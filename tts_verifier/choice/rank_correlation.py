"""Rank correlation: does one order of candidates predict another?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

FEWEST_PAIRS: Final = 4
"""With fewer pairs, a correlation does not say whether one order predicts another."""


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Returns Spearman's rank correlation; tied values share their mean rank.

    Args:
        pairs: finite values.

    Returns:
        In [-1, 1]; 1 if it is undefined: fewer than 4 pairs, or a column of equal values.
    """
    if len(pairs) < FEWEST_PAIRS:
        return 1.0
    one, other = np.asarray(pairs, np.float64).T
    if not (np.ptp(one) and np.ptp(other)):
        return 1.0
    # Imported here because scipy.stats takes long to import and few runs need it. `spearmanr`
    # would also compute a p value, which takes most of its time.
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
