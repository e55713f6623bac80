"""Preparing ahead: in order, no further than it should be, errors where they belong."""

from __future__ import annotations

import pytest
import torch

from tts_verifier.verifiers.imagedoctor.ops import transfer
from tts_verifier.verifiers.imagedoctor.ops.transfer import prepared

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_prepares_what_is_asked_for() -> None:
    made: list[int] = []
    results = prepared(lambda i: made.append(i) or i * i, range(5), CPU)
    assert [next(results), next(results)] == [0, 1]
    assert made == [0, 1]


def test_beside_a_gpu_so_many_are_prepared_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_AHEAD", 3)
    made: list[int] = []
    results = prepared(lambda i: made.append(i) or i * i, range(10), GPU)
    assert next(results) == 0
    assert max(made, default=0) <= 3
    assert list(results) == [i * i for i in range(1, 10)]


def test_an_error_comes_in_its_place() -> None:
    results = prepared(lambda i: 1 // (i - 2), range(5), GPU)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
