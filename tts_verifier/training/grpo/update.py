"""One update of the policy with the groups of a step whose rewards differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor

from tts_verifier.training.cold_start.stages import MOST_GRADIENT
from tts_verifier.training.common.step_guard import StepGuard
from tts_verifier.training.grpo.losses import token_losses, token_weights
from tts_verifier.training.grpo.measures import Rewarded, Seconds
from tts_verifier.training.grpo.policy import GroupRows, Policy, pack
from tts_verifier.training.grpo.rollouts import Group, Rollouts
from tts_verifier.training.grpo.settings import GrpoSettings

ROW_SHAPES: Final = 8
"""How many numbers of groups go through the network, at most: fewer groups are filled up."""


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """The parts that a step works with."""

    policy: Any
    """The `Policy`, as accelerate prepared it."""
    optimiser: Any
    """As accelerate prepared it."""
    accelerator: Accelerator
    """Of the processes."""
    reference: Policy | None
    """The policy at the start of the run; None with beta 0."""
    rollouts: Rollouts
    """Draws replies."""
    reward: Callable[[Sequence[Group]], Rewarded]
    """Rewards replies."""
    settings: GrpoSettings
    """Of the run."""
    guard: StepGuard
    """Counts skipped steps."""

    @property
    def trained(self) -> Policy:
        """The policy without what accelerate has put around it."""
        policy: Policy = self.accelerator.unwrap_model(self.policy)
        return policy


def update(
    training: Training,
    step: int,
    kept: Sequence[tuple[Group, Tensor]],
    sums: Mapping[str, float],
    seconds: Seconds,
) -> dict[str, float]:
    """Updates the policy with the groups that have a variance, and returns the metrics of that.

    Args:
        training: its parts.
        step: its number.
        kept: the groups of this process, each with its advantages (replies,).
        sums: over all processes.
        seconds: where the time is counted.
    """
    if not sums["kept_groups"]:
        return {"total": 0.0, "gradient": 0.0, "skipped": 0.0}
    accelerator, settings = training.accelerator, training.settings
    with seconds.of("reference"):
        share = settings.prompts // accelerator.num_processes
        blocks = blocks_of_groups(
            kept,
            most=min(settings.block or share, share),
            with_pixels=training.trained.train_tower,
        )
        references = [reference_log_probs(training, rows) for rows, _ in blocks]
    with seconds.of("update"):
        olds: list[Tensor | None] = [None] * len(blocks)
        for _ in range(settings.num_iterations):
            found = torch.zeros(4, device=accelerator.device)
            for i, (rows, advantages) in enumerate(blocks):
                found_here, olds[i] = add_gradients(
                    training, rows, advantages, olds[i], references[i], sums
                )
                found += found_here
            add_up_gradients(training)
            norm = accelerator.clip_grad_norm_(training.policy.parameters(), MOST_GRADIENT)
            total, kl, clipped, gap = accelerator.reduce(found, "sum").tolist()
            row = {"total": total, "gradient": float(norm)}
            row["skipped"] = float(not training.guard.allows(step, total, row["gradient"]))
            if not row["skipped"]:
                training.optimiser.step()
            training.optimiser.zero_grad()
    tokens = sums["kept_tokens"]
    row |= {"clip_share": clipped / tokens, "rollout_gap": gap / tokens}
    return row | ({"kl": kl / tokens} if training.reference is not None else {})


def blocks_of_groups(
    kept: Sequence[tuple[Group, Tensor]], *, most: int, with_pixels: bool
) -> list[tuple[GroupRows, Tensor]]:
    """Packs groups into blocks of few shapes, each with its advantages (groups, replies).

    Args:
        kept: groups with their advantages (replies,).
        most: groups of a block.
        with_pixels: see `pack`.
    """
    unit = -(-most // ROW_SHAPES)
    blocks = []
    for first in range(0, len(kept), most):
        part = kept[first : first + most]
        rows = -(-len(part) // unit) * unit
        packed = pack([group for group, _ in part], rows=rows, with_pixels=with_pixels)
        advantages = torch.zeros(rows, len(part[0][1]))
        advantages[: len(part)] = torch.stack([advantage for _, advantage in part])
        blocks.append((packed, advantages.to(packed.replies.device)))
    return blocks


@torch.no_grad()
def reference_log_probs(training: Training, rows: GroupRows) -> Tensor | None:
    """Returns the frozen reference's log-probabilities; None without one."""
    if training.reference is None:
        return None
    with training.accelerator.autocast():
        found: Tensor = training.reference(rows)
    return found


def add_gradients(
    training: Training,
    rows: GroupRows,
    advantages: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    sums: Mapping[str, float],
) -> tuple[Tensor, Tensor]:
    """Adds a block's gradients.

    Returns:
        (4,), the block's loss, and over its tokens the sums of the divergence, of clipped ones and
        of the distances between log-probabilities here and in the rollout; and the old
        log-probabilities.
    """
    accelerator, settings = training.accelerator, training.settings
    # Processes may have unlike numbers of blocks, so gradients are added up once, after all.
    with accelerator.no_sync(training.policy):
        log_probs = training.policy(rows)
        old = log_probs.detach() if old is None else old
        losses = token_losses(
            log_probs,
            old,
            reference,
            advantages,
            epsilon=settings.epsilon,
            beta=settings.beta,
        )
        weights = token_weights(
            settings.loss,
            rows.chosen,
            replies=int(sums["kept_replies"]),
            tokens=int(sums["kept_tokens"]),
            most=training.rollouts.limits.max_new_tokens,
        )
        loss = (losses.loss * weights).sum()
        accelerator.backward(loss)
    there = rows.chosen.float()
    gap = ((log_probs.detach() - rows.rollout).abs() * there).sum()
    kl, clipped = (losses.kl.detach() * there).sum(), (losses.clipped * there).sum()
    return torch.stack([loss.detach(), kl, clipped, gap]), old


def add_up_gradients(training: Training) -> None:
    """Adds up the gradients of all processes; the losses are shares of one mean already."""
    if training.accelerator.num_processes == 1:
        return
    for parameter in training.policy.parameters():
        if parameter.requires_grad:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = training.accelerator.reduce(own, "sum")
