from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tts_verifier.errors import InputError
from tts_verifier.verifiers.batches import HalvedBatches


def test_a_batch_that_does_not_fit_is_halved_and_stays_so() -> None:
    sizes = []

    def compute(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("full")
        return [10 * item for item in items]

    batches = HalvedBatches(12)
    assert batches.run(compute, range(8), "cpu") == [10 * i for i in range(8)]
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert batches.size == 2
    assert batches.run(compute, [], "cpu") == []


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    def compute(items: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        HalvedBatches(2).run(compute, [1, 2], "cpu")


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "2"])
def test_a_size_is_an_integer_from_1(size: object) -> None:
    with pytest.raises(InputError, match="batch_size must be an integer from 1"):
        HalvedBatches(size)  # type: ignore[arg-type]
