"""The kernels that draw tokens against the plain torch operations; on a CPU interpreted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import mostly_slow

pytest.importorskip("triton")

from tts_verifier.verifiers.imagedoctor.engine import next_token
from tts_verifier.verifiers.imagedoctor.engine.next_token import (
    draws_of,
    greedy,
    penalise,
    sample,
    token_log_probs,
)
from tts_verifier.verifiers.imagedoctor.ops import sampling_kernels
from tts_verifier.verifiers.imagedoctor.requests import Sampling

GPU = torch.cuda.is_available()
SIZES = [(64, 10), (64, 151_936)] if GPU else [(2, 300)]
SETTINGS = [
    (1.0, 0, 1.0),
    (1e-6, 0, 1.0),
    (0.7, 7, 1.0),
    (1.3, 0, 0.9),
    (1.0, 0, 0.2),
    (1.2, 50, 0.8),
    (1.0, 200, 0.99),
]
QUICK = [(1e-6, 0, 1.0), (0.7, 7, 1.0), (1.2, 50, 0.8)]
"""What an interpreter draws in every run."""


@pytest.fixture(autouse=True)
def _start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert sampling_kernels.VOCABULARY_BLOCK == next_token.DRAW_BLOCK
    if not GPU:
        # An interpreter runs the kernels: two blocks of few tokens.
        monkeypatch.setattr(sampling_kernels, "VOCABULARY_BLOCK", 256)
        monkeypatch.setattr(next_token, "DRAW_BLOCK", 256)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


def plain(scores: torch.Tensor, draws: torch.Tensor, setting: Sampling) -> torch.Tensor:
    """Draws with torch's operations, also where there is a GPU."""
    device = scores.device
    return sample(scores.cpu(), draws.cpu(), setting).to(device)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("setting", mostly_slow(SETTINGS, quick=SETTINGS if GPU else QUICK))
def test_draws_are_those_of_the_plain_operations(
    rows: int, columns: int, setting: tuple[float, int, float]
) -> None:
    temperature, top_k, top_p = setting
    scores = torch.randn(rows, columns) * 3
    draws = torch.from_numpy(draws_of(range(rows), 3))[:, 2].to(scores.device)
    drawn = sampling_kernels.triton_sample(
        scores, draws, temperature=temperature, top_k=top_k, top_p=top_p
    )
    expected = plain(scores, draws, Sampling(temperature, top_k, top_p))
    assert torch.equal(drawn, expected)
    log_probs = sampling_kernels.triton_log_probs(scores, drawn, temperature)
    expected = (scores.double() / temperature).log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [pytest.param(2, 1.0, marks=() if GPU else pytest.mark.slow), (0, 0.5)]
)
def test_equal_scores_stay_together_and_impossible_tokens_are_never_drawn(
    top_k: int, top_p: float
) -> None:
    row = torch.full((500,), float("-inf"))
    row[[7, 450, 460]] = 2.0
    row[9] = 1.0
    most = 1 - 2**-24
    draws = torch.tensor([[0.0, 0.0], [most, most], [most, 0.34]])
    rows = row.expand(3, -1)
    drawn = sampling_kernels.triton_sample(rows, draws, temperature=1.0, top_k=top_k, top_p=top_p)
    assert set(drawn.tolist()) == {7, 450, 460}
    assert torch.equal(drawn, plain(rows, draws, Sampling(1.0, top_k, top_p)))
    log_probs = token_log_probs(rows, drawn, 1.0)
    assert log_probs.isfinite().all()


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_best_token_is_that_of_the_plain_operations(
    rows: int, columns: int, penalty: float
) -> None:
    logits = (torch.randn(rows, columns) * 3).bfloat16()
    used = torch.rand(rows, columns) < 0.5
    expected = greedy(penalise(logits.float(), used, penalty))
    assert torch.equal(sampling_kernels.triton_greedy(logits, used, penalty), expected)


def test_of_equal_tokens_the_first_is_best() -> None:
    logits = torch.zeros(2, 700)
    logits[0, [300, 301, 600]] = 1.0
    logits[1, [699]] = float("-inf")
    none = torch.empty(2, 0, dtype=torch.bool)
    assert sampling_kernels.triton_greedy(logits, none, 1.0).tolist() == [300, 0]
