"""Groups as rows of the network: the same numbers as one reply after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tts_verifier.training.grpo import policy as policy_module
from tts_verifier.training.grpo.policy import (
    GroupRows,
    Policy,
    chosen_log_probs,
    group_mask,
    pack,
)
from tts_verifier.training.grpo.prompts import PromptSource, RatedPrompt
from tts_verifier.training.grpo.rollouts import DrawnReply, Group
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint


def drawn(ids: list[int]) -> DrawnReply:
    return DrawnReply("", ids, np.zeros(len(ids), np.float32), {})


@pytest.fixture
def groups(checkpoint: Checkpoint, source: PromptSource) -> list[Group]:
    """Two groups whose prompts and replies have different lengths."""
    image = checkpoint.model.config.image_token_id
    prompts = source.step(0, range(2))
    assert len(prompts[0].ids) != len(prompts[1].ids)
    replies = [[[5, 6, 7], [8]], [[9, image, 10, 11], [12, 13]]]
    return [
        Group(prompt, features(checkpoint, prompt), [drawn(ids) for ids in of_group])
        for prompt, of_group in zip(prompts, replies, strict=True)
    ]


def features(checkpoint: Checkpoint, prompt: RatedPrompt) -> Tensor:
    with torch.no_grad():
        pixels = torch.from_numpy(prompt.patches)
        return checkpoint.model.visual_features(pixels, [checkpoint.processor.grid])


def policy_of(checkpoint: Checkpoint, **changes: object) -> Policy:
    keys = {"grid": checkpoint.processor.grid, "temperature": 1.0} | changes
    return Policy(checkpoint.model, **keys)  # type: ignore[arg-type]


def one_by_one(checkpoint: Checkpoint, group: Group, reply: DrawnReply) -> Tensor:
    """The log-probabilities of a reply in a row of its own."""
    model, grid = checkpoint.model, checkpoint.processor.grid
    prompt, ids = torch.tensor([group.prompt.ids]), torch.tensor([reply.ids])
    # Positions and embedding as if the reply had ordinary tokens only.
    plain = torch.cat([prompt, torch.full_like(ids, 5)], 1)
    positions, _ = model.positions(plain, [grid])
    embedded = model.embed(plain, group.visual)
    embedded = torch.cat([embedded[:, : -ids.shape[1]], model.model.embed_tokens(ids)], 1)
    states = model.language(embedded, positions)[0, prompt.shape[1] - 1 : -1]
    return model.lm_head(states).log_softmax(-1).gather(1, ids.T)[:, 0]


def test_replies_of_a_group_in_one_row_are_as_probable_as_in_rows_of_their_own(
    checkpoint: Checkpoint, groups: list[Group]
) -> None:
    rows = pack(groups, rows=3, with_pixels=False)
    assert rows.chosen.sum((1, 2)).tolist() == [4, 6, 0]
    assert rows.replies.shape[2] == policy_module.PADDED_TO
    with torch.no_grad():
        found = policy_of(checkpoint)(rows)
        for i, group in enumerate(groups):
            for k, reply in enumerate(group.replies):
                alone = one_by_one(checkpoint, group, reply)
                torch.testing.assert_close(
                    found[i, k, : len(reply.ids)], alone, atol=1e-4, rtol=1e-4
                )
    assert found.isfinite().all()


def test_the_tower_is_run_once_for_a_group_if_it_is_trained(
    checkpoint: Checkpoint, groups: list[Group]
) -> None:
    policy = policy_of(checkpoint, train_tower=True)
    rows = pack(groups, rows=2, with_pixels=True)
    assert rows.visual.numel() == 0
    assert len(rows.pixels) == 2 * len(groups[0].prompt.patches)
    with torch.no_grad():
        frozen = policy_of(checkpoint)(pack(groups, rows=2, with_pixels=False))
    torch.testing.assert_close(policy(rows).detach(), frozen, atol=1e-4, rtol=1e-4)
    policy(rows).sum().backward()
    assert checkpoint.model.visual.blocks[0].attn.qkv.weight.grad is not None
    assert any(name.startswith("visual.") for name in policy.state())


def test_a_reply_sees_its_prompt_and_itself_alone() -> None:
    mask = group_mask(torch.tensor([[True, True, False]]), 2, 2)[0, 0]
    wanted = [
        "1000000",
        "1100000",
        "1100000",  # padding of the prompt, which nothing sees
        "1101000",
        "1101100",
        "1100010",
        "1100011",
    ]
    assert ["".join(map(str, row)) for row in mask.int().tolist()] == wanted


def test_log_probabilities_in_parts_are_those_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = nn.Linear(4, 7, bias=False)
    tokens = torch.tensor([0, 3, 6, 2, 2])
    found = []
    for most in (2**28, 14):
        monkeypatch.setattr(policy_module, "MOST_LOGITS", most)
        states = torch.linspace(-1, 1, 20).view(5, 4).requires_grad_()
        chosen_log_probs(states, head, tokens, 0.5).sum().backward()
        found.append((chosen_log_probs(states, head, tokens, 0.5).detach(), states.grad))
    torch.testing.assert_close(found[0], found[1])
    wanted = (head(torch.linspace(-1, 1, 20).view(5, 4)) / 0.5).log_softmax(-1)
    torch.testing.assert_close(found[0][0], wanted.gather(1, tokens[:, None])[:, 0].detach())


def test_the_reference_stays_where_the_policy_began(
    checkpoint: Checkpoint, groups: list[Group]
) -> None:
    policy = policy_of(checkpoint)
    reference = policy.frozen_copy(torch.device("cpu"))
    rows: GroupRows = pack(groups, rows=2, with_pixels=False)
    before = policy(rows).detach()
    with torch.no_grad():
        assert torch.equal(reference(rows), before)
        for parameter in policy.parameters():
            parameter.add_(0.01)
        assert torch.equal(reference(rows), before)
        assert not torch.equal(policy(rows), before)
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_only_what_is_trained_is_part_of_the_policy(checkpoint: Checkpoint) -> None:
    names = set(policy_of(checkpoint).state())
    assert names <= set(checkpoint.model.state_dict())
    assert all(name.startswith(("model.", "lm_head.")) for name in names)
