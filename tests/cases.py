"""Which cases of a parametrised test every run has; `-m slow` has the others."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], *, quick: Collection[Any]) -> list[Any]:
    """All cases; those that are not quick are marked as slow."""
    found = list(cases)
    assert all(case in found for case in quick), f"{quick} must be among {found}"
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in found]
