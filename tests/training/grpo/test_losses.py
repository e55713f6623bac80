"""The loss of GRPO: cases computed by hand, and TRL's own functions where TRL is installed."""

from __future__ import annotations

import pytest
import torch

from tts_verifier.training.grpo.losses import (
    advantages_of,
    kl_estimate,
    token_losses,
    token_weights,
)
from tts_verifier.training.grpo.settings import LossKind

CHOSEN = torch.tensor([[[True, False, False, False], [True, True, True, False]]])
"""One group of two replies, of one and three tokens."""
MOST = 10
RATIOS = torch.tensor([[[1.25, 1.0, 1.0, 1.0], [0.5, 1.25, 0.5, 1.0]]])
ADVANTAGES = torch.tensor([[2.0, -2.0]])


def test_an_advantage_is_the_distance_to_the_groups_mean_in_standard_deviations() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
    advantages, varies = advantages_of(rewards)
    # The standard deviations are sqrt(5 / 3) = 1.2909944 and 1 / 2.
    assert advantages[0].tolist() == pytest.approx([-1.1618051, -0.3872684, 0.3872684, 1.1618051])
    assert advantages[1].tolist() == [0.0] * 4
    assert advantages[2].tolist() == pytest.approx([-0.49990, -0.49990, -0.49990, 1.49970])
    assert varies.tolist() == [True, False, True]


def test_the_clipping_bounds_what_a_token_can_gain() -> None:
    log_probs = RATIOS.log().requires_grad_()
    losses = token_losses(
        log_probs, torch.zeros_like(RATIOS), None, ADVANTAGES, epsilon=0.2, beta=0.04
    )
    # 1.25 is cut to 1.2 where more is better, 0.5 is raised to 0.8 where less is better.
    wanted = [[[-2.4, -2.0, -2.0, -2.0], [1.6, 2.5, 1.6, 2.0]]]
    assert torch.allclose(losses.loss, torch.tensor(wanted))
    assert losses.clipped[CHOSEN].tolist() == [True, True, False, True]
    assert not losses.kl.any()
    losses.loss.sum().backward()
    gradient = log_probs.grad
    assert gradient is not None
    assert (gradient[losses.clipped] == 0).all()
    assert gradient[0, 1, 1] == pytest.approx(2.5)


def test_the_divergence_is_estimated_by_k3() -> None:
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log()
    # 1/2 - log(1/2) - 1.
    assert kl_estimate(policy, reference).tolist() == pytest.approx([0.1931472, 0.0])
    losses = token_losses(policy, policy, reference, torch.tensor(1.0), epsilon=0.2, beta=0.04)
    assert losses.loss.tolist() == pytest.approx([-1 + 0.04 * 0.1931472, -1.0])
    assert losses.kl.tolist() == pytest.approx([0.1931472, 0.0])


@pytest.mark.parametrize(
    ("kind", "weights", "loss"),
    [
        # (-2.4 + (1.6 + 2.5 + 1.6) / 3) / 2
        ("grpo", [1 / 2, 1 / 6, 1 / 6, 1 / 6], -0.25),
        # (-2.4 + 1.6 + 2.5 + 1.6) / (2 * 10)
        ("dr_grpo", [1 / 20] * 4, 0.165),
        # (-2.4 + 1.6 + 2.5 + 1.6) / 4
        ("dapo", [1 / 4] * 4, 0.825),
    ],
)
def test_the_three_means_of_the_tokens(kind: LossKind, weights: list[float], loss: float) -> None:
    found = token_weights(kind, CHOSEN, replies=2, tokens=4, most=MOST)
    assert found[CHOSEN].tolist() == pytest.approx(weights)
    assert not found[~CHOSEN].any()
    losses = token_losses(
        RATIOS.log(), torch.zeros_like(RATIOS), None, ADVANTAGES, epsilon=0.2, beta=0.0
    )
    assert float((losses.loss * found).sum()) == pytest.approx(loss)


def test_blocks_of_a_step_add_up_to_its_mean() -> None:
    chosen = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    for kind in ("grpo", "dr_grpo", "dapo"):
        counts = {"replies": 12, "tokens": int(chosen.sum()), "most": MOST}
        whole = token_weights(kind, chosen, **counts)
        parts = [token_weights(kind, part, **counts) for part in chosen.split(2)]
        assert torch.equal(torch.cat(parts), whole)
        if kind != "dr_grpo":
            assert float(whole.sum()) == pytest.approx(1.0)
