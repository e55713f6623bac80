"""TRL as an oracle: its GRPO trainer computes our losses, divergences, shares and advantages."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tts_verifier.training.grpo.losses import advantages_of, token_losses, token_weights
from tts_verifier.training.grpo.settings import LossKind

trl = pytest.importorskip("trl", reason="The oracle TRL is not installed: pip install trl==1.16.0")
pytestmark = pytest.mark.filterwarnings("ignore")

GROUPS, SIZE, LENGTH, MOST = 3, 4, 7, 20
BETA, EPSILON = 0.04, 0.2


@pytest.fixture(scope="module")
def trainer() -> Any:
    try:
        from trl.trainer import grpo_trainer
    except RuntimeError as error:
        pytest.skip(f"TRL is installed without what its trainer needs: {error}")
    return grpo_trainer


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Log-probabilities of replies of different lengths, off the policy that drew them."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(GROUPS * SIZE, LENGTH, generator=generator)

    policy = -normal().abs()
    lengths = torch.randint(1, LENGTH + 1, (GROUPS * SIZE, 1), generator=generator)
    return {
        "policy": policy.requires_grad_(),
        "old": (policy + 0.3 * normal()).detach(),
        "reference": (policy + 0.3 * normal()).detach(),
        "mask": torch.arange(LENGTH) < lengths,
        "rewards": torch.randn(GROUPS, SIZE, generator=generator),
    }


def stub(kind: str, policy: Tensor) -> SimpleNamespace:
    """All that the trainer's loss reads of a trainer."""
    same = SimpleNamespace(
        num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x, sync_gradients=True
    )
    return SimpleNamespace(
        loss_type=kind,
        beta=BETA,
        epsilon_low=EPSILON,
        epsilon_high=EPSILON,
        max_completion_length=MOST,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=same,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (policy, torch.zeros_like(policy), None),
    )


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
def test_losses_gradients_divergence_and_clipping_are_those_of_trl(
    kind: LossKind, trainer: Any, batch: dict[str, Tensor]
) -> None:
    policy, mask = batch["policy"], batch["mask"]
    advantages, _ = advantages_of(batch["rewards"])
    self = stub(kind, policy)
    ids = torch.zeros(GROUPS * SIZE, LENGTH, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantages.flatten(),
        "old_per_token_logps": batch["old"],
        "ref_per_token_logps": batch["reference"],
        "num_items_in_batch": mask.sum(),
    }
    theirs = trainer.GRPOTrainer._compute_loss(self, None, inputs)
    (their_gradient,) = torch.autograd.grad(theirs, policy, retain_graph=True)
    ours = token_losses(
        policy, batch["old"], batch["reference"], advantages.flatten(), epsilon=EPSILON, beta=BETA
    )
    counts = {"replies": GROUPS * SIZE, "tokens": int(mask.sum()), "most": MOST}
    loss = (ours.loss * token_weights(kind, mask, **counts)).sum()
    (our_gradient,) = torch.autograd.grad(loss, policy)
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(our_gradient, their_gradient)
    metrics = {name: values[0] for name, values in self._metrics["train"].items()}
    assert float(ours.kl[mask].mean()) == pytest.approx(metrics["kl"], rel=1e-5)
    share = float(ours.clipped[mask].float().mean())
    assert 0 < share == pytest.approx(metrics["clip_ratio/region_mean"], rel=1e-5)


def test_advantages_are_those_of_trl(trainer: Any, batch: dict[str, Tensor]) -> None:
    """Its lines that compute them stand in the middle of a long method; they are run alone."""
    source = inspect.getsource(trainer.GRPOTrainer._generate_and_score_completions)
    block = next(
        node
        for node in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(node, ast.If) and "sum_then_normalize" in ast.unparse(node.test)
    )
    rewards = torch.cat([batch["rewards"], torch.full((1, SIZE), 2.0)])
    names: dict[str, Any] = {
        "self": SimpleNamespace(
            multi_objective_aggregation="sum_then_normalize",
            scale_rewards="group",
            reward_weights=torch.ones(1),
        ),
        "rewards_per_func": rewards.view(-1, 1),
        "unscorable_mask": torch.zeros(rewards.numel(), dtype=torch.bool),
        "num_generations": SIZE,
        "device": torch.device("cpu"),
    }
    exec(compile(ast.unparse(block), "trl", "exec"), vars(trainer) | names, names)
    advantages, varies = advantages_of(rewards)
    torch.testing.assert_close(advantages.flatten(), names["advantages"])
    assert (~varies).repeat_interleave(SIZE).tolist() == names["is_std_zero"].tolist()
