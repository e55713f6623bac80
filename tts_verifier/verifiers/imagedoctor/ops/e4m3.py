"""The 8-bit floating-point format of matrices in fp8, and how rows are scaled to it.

Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning, section 3.
"""

from __future__ import annotations

from typing import Final

import torch

DTYPE: Final = torch.float8_e4m3fn
LARGEST: Final = 448.0
"""The largest number that e4m3 holds."""
SMALLEST_PEAK: Final = 1e-12
"""A row's largest value counts as at least this, so a row of zeros has a scale."""
