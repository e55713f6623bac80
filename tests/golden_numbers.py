"""Numbers of the official network: the folder `golden`, its tolerances, and the check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "verifiers" / "imagedoctor" / "golden"
TOLERANCES = json.loads((GOLDEN / "tolerances.json").read_text())
EXPECTED = np.load(GOLDEN / "expected.npz")


def check(sample: int, name: str, got: Any) -> None:
    expected = EXPECTED[f"s{sample}.{name}"]
    got = np.asarray(got.detach() if isinstance(got, torch.Tensor) else got, dtype=np.float64)
    assert got.shape == expected.shape, f"s{sample}.{name}: {got.shape} {expected.shape}"
    largest = np.abs(got - expected).max()
    assert largest <= TOLERANCES[name], f"s{sample}.{name} differs by {largest}"
