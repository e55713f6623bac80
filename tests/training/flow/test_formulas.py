"""Steps that draw and losses, held to torch.distributions and to the formulas of their sources."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from tts_verifier.training.flow.formulas.losses import awm_loss, nft_loss, policy_loss
from tts_verifier.training.flow.formulas.sde import StepKind, step_law

KINDS: tuple[StepKind, ...] = ("sde", "cps")


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def levels(noise: float) -> dict[str, Tensor]:
    return {
        "sigma": torch.tensor([1.0, 0.6]),
        "after": torch.tensor([0.9, 0.5]),
        "largest": torch.tensor([0.9, 0.9]),
        "noise": torch.full((2,), noise),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_normal_distributions(kind: StepKind) -> None:
    latents, velocity = rand(2, 4, 3, 5), rand(2, 4, 5, 3).transpose(2, 3)
    law = step_law(kind, latents, velocity, **levels(0.7))
    following = law.draw(rand(2, 4, 3, 6)[..., :5])
    normal = Normal(law.mean, law.std.expand_as(law.mean))
    torch.testing.assert_close(law.log_prob(following), normal.log_prob(following).mean(1))
    other = law.mean + 0.1 * rand(2, 4, 3, 5)
    expected = kl_divergence(normal, Normal(other, normal.scale)).mean((1, 2, 3))
    torch.testing.assert_close(law.divergence(other), expected)


def test_the_laws_are_those_of_the_official_steps() -> None:
    latents, velocity, given = rand(2, 4, 3, 3), rand(2, 4, 3, 4)[..., :3], levels(0.7)
    s, t = (given[n].view(-1, 1, 1, 1) for n in ("sigma", "after"))
    # flow_grpo, sd3_sde_with_logprob.py.
    spread = torch.sqrt(s / (1 - torch.where(s == 1, 0.9, s))) * 0.7
    dt = t - s
    mean = latents * (1 + spread**2 / (2 * s) * dt)
    mean = mean + velocity * (1 + spread**2 * (1 - s) / (2 * s)) * dt
    law = step_law("sde", latents, velocity, **given)
    torch.testing.assert_close(law.mean, mean)
    torch.testing.assert_close(law.std, spread * torch.sqrt(-dt))
    std = t * torch.sin(torch.tensor(0.7 * torch.pi / 2))
    mean = (latents - s * velocity) * (1 - t)
    mean = mean + (latents + velocity * (1 - s)) * torch.sqrt(t**2 - std**2)
    law = step_law("cps", latents, velocity, **given)
    torch.testing.assert_close(law.mean, mean)
    torch.testing.assert_close(law.std, std)


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_a_step_is_that_of_euler(kind: StepKind) -> None:
    latents, velocity = rand(2, 4, 3, 3), rand(2, 4, 3, 4)[..., :3]
    law = step_law(kind, latents, velocity, **levels(0.0))
    torch.testing.assert_close(law.draw(rand(2, 4, 3, 3)), latents - 0.1 * velocity)
    assert not law.log_prob(latents).any()
    assert not law.divergence(latents).any()


def test_the_ratio_of_pictures_has_the_gradient_of_places() -> None:
    log_probs, old = rand(2, 3, 3).requires_grad_(), rand(2, 3, 4)[..., :3]
    advantages = torch.tensor([1.5, -0.5])[:, None, None]
    found = policy_loss(log_probs, old, advantages, ratio="picture", clip=10.0)
    # Official: s p / sg[p].
    s = (log_probs.mean((1, 2)) - old.mean((1, 2))).exp().detach()[:, None, None]
    p = log_probs.exp()
    expected = -advantages * s * p / (p.detach() + 1e-10)
    torch.testing.assert_close(found.loss, expected)
    (ours,) = torch.autograd.grad(found.loss.sum(), log_probs, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), log_probs)
    torch.testing.assert_close(ours, theirs)


def test_the_ratio_of_places_is_clipped_where_it_would_go_further() -> None:
    log_probs = torch.tensor([[[0.2, 0.2, -0.2, 0.0]]]).requires_grad_()
    advantages = torch.tensor([[[1.0, -1.0, -1.0, 0.0]]])
    found = policy_loss(log_probs, torch.zeros(1, 1, 4), advantages, ratio="place", clip=0.1)
    assert found.clipped.tolist() == [[[True, False, True, False]]]
    (gradient,) = torch.autograd.grad(found.loss.sum(), log_probs)
    assert [bool(g) for g in gradient.flatten()] == [False, True, False, False]
    torch.testing.assert_close(found.ratio, log_probs.detach().exp())


def test_awm_weighs_the_flow_matching_error() -> None:
    v, target, reference = rand(2, 4, 3, 3), rand(2, 4, 3, 4)[..., :3], rand(2, 4, 4, 3)[..., :3, :]
    advantages = rand(2, 3, 3)
    expected = advantages * (v - target).pow(2).mean(1) + 0.5 * (v - reference).pow(2).mean(1)
    torch.testing.assert_close(awm_loss(v, target, reference, advantages, pull=0.5), expected)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_nft_is_the_loss_of_the_paper_but_for_a_constant(beta: float) -> None:
    target, reference, advantages = rand(2, 4, 3, 3), rand(2, 4, 4, 3)[..., :3, :], rand(2, 1, 1)
    advantages, differences = advantages.clamp(-1, 1), []
    share = (advantages[:, None] + 1) / 2
    for seed in (1, 2):
        v = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
        better = (1 - beta) * reference + beta * v
        worse = (1 + beta) * reference - beta * v
        paper = share * (better - target) ** 2 + (1 - share) * (worse - target) ** 2
        ours: Any = nft_loss(v, target, reference, advantages, beta=beta)
        differences.append(paper.mean(1) - ours)
    torch.testing.assert_close(differences[0], differences[1])
