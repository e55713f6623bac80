"""Preparing inputs ahead: in order, not too far ahead, errors in their places."""

from __future__ import annotations

import pytest
import torch

from tts_verifier.verifiers.imagedoctor.image.prefetch import map_ahead

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_prepares_an_input_only_when_it_is_needed() -> None:
    prepared: list[int] = []
    results = map_ahead(lambda i: prepared.append(i) or i * i, range(5), CPU)
    assert [next(results), next(results)] == [0, 1]
    assert prepared == [0, 1]


def test_beside_a_gpu_a_limited_number_of_inputs_is_prepared_ahead() -> None:
    prepared: list[int] = []
    results = map_ahead(lambda i: prepared.append(i) or i * i, range(10), GPU, ahead=3)
    assert next(results) == 0
    assert max(prepared, default=0) <= 3
    assert list(results) == [i * i for i in range(1, 10)]


def test_an_error_comes_in_the_place_of_its_result() -> None:
    results = map_ahead(lambda i: 1 // (i - 2), range(5), GPU)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
