"""Groups of replies from the engine's own copy of the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tts_verifier.training.grpo.measures import OfficialRewards
from tts_verifier.training.grpo.policy import Policy, pack
from tts_verifier.training.grpo.prompts import PromptSource, prompts_ahead
from tts_verifier.training.grpo.rewards import REWARDS
from tts_verifier.training.grpo.rollouts import (
    Group,
    Rollouts,
    rollout_limits,
    sequences_beside,
)
from tts_verifier.training.grpo.settings import GrpoSettings
from tts_verifier.training.verifier.answers import answer_text
from tts_verifier.training.verifier.token_rows import encode_reply
from tts_verifier.types.score_names import SCORE_NAMES
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def rollouts(checkpoint: Checkpoint, settings: GrpoSettings) -> Rollouts:
    return Rollouts(checkpoint, settings, 0, CPU)


def ids_of(groups: list[Group]) -> list[list[list[int]]]:
    return [[reply.ids for reply in group.replies] for group in groups]


def test_groups_come_in_the_order_of_their_prompts_and_repeat(
    rollouts: Rollouts, source: PromptSource
) -> None:
    prompts = source.step(0, range(2))
    groups = rollouts.draw(prompts)
    assert [group.prompt for group in groups] == prompts
    assert [len(group.replies) for group in groups] == [3, 3]
    assert len({tuple(ids) for ids in ids_of(groups)[0]}) > 1
    assert ids_of(rollouts.draw(prompts[1:])) == ids_of(groups)[1:]
    later = replace(prompts[0], place=99)
    assert ids_of(rollouts.draw([later])) != ids_of(groups)[:1]


def test_the_policy_gives_the_log_probabilities_that_the_rollout_recorded(
    checkpoint: Checkpoint, settings: GrpoSettings, source: PromptSource
) -> None:
    warm = replace(settings, temperature=0.7)
    groups = Rollouts(checkpoint, warm, 0, CPU).draw(source.step(0, range(2)))
    rows = pack(groups, rows=2, with_pixels=False)
    policy = Policy(checkpoint.model, grid=checkpoint.processor.grid, temperature=0.7)
    with torch.no_grad():
        found = policy(rows)
    torch.testing.assert_close(found[rows.chosen], rows.rollout[rows.chosen], atol=1e-4, rtol=1e-4)


def test_new_weights_are_copied_into_the_engines_own(
    checkpoint: Checkpoint, rollouts: Rollouts, source: PromptSource
) -> None:
    prompts = source.step(0, range(2))
    first = ids_of(rollouts.draw(prompts))
    policy = Policy(checkpoint.model, grid=checkpoint.processor.grid, temperature=1.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert ids_of(rollouts.draw(prompts)) == first
    address = rollouts.model.model.embed_tokens.weight.data_ptr()
    rollouts.update(policy.state())
    assert rollouts.model.model.embed_tokens.weight.data_ptr() == address
    assert ids_of(rollouts.draw(prompts)) != first


def test_replies_are_drawn_without_a_penalty(
    checkpoint: Checkpoint, settings: GrpoSettings
) -> None:
    limits = rollout_limits(replace(checkpoint.limits, penalty=1.05), settings)
    assert (limits.penalty, limits.max_new_tokens, limits.temperature) == (1.0, 6, 1.0)
    assert limits.log_probs
    whole = rollout_limits(checkpoint.limits, replace(settings, max_new_tokens=None))
    assert whole.max_new_tokens == checkpoint.limits.max_new_tokens


def test_a_rollout_leaves_memory_for_the_training() -> None:
    assert sequences_beside(free=80, single=1, wanted=512) == 20
    assert sequences_beside(free=80_000, single=1, wanted=16) == 16
    assert sequences_beside(free=80_000, single=1, wanted=9_000) == 512
    assert sequences_beside(free=-5, single=1, wanted=16) == 1


def answered(checkpoint: Checkpoint, text: str) -> list[int]:
    ids = encode_reply(text, checkpoint.tokenizer, checkpoint.model.config)
    return [*ids, checkpoint.tokenizer.control.im_end]


def test_official_rewards_read_the_replies_and_the_maps_of_their_own_states(
    checkpoint: Checkpoint,
    settings: GrpoSettings,
    source: PromptSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One reply tells the truth, the others say nothing that can be read."""
    (prompt,) = source.step(0, range(1))
    truth = dict(zip(SCORE_NAMES, prompt.scores, strict=True))
    script = answered(checkpoint, f"<think>Red.</think>\n<answer>{answer_text(truth)}")
    rollouts = Rollouts(checkpoint, replace(settings, max_new_tokens=len(script)), 0, CPU)
    scripted(rollouts, script, monkeypatch)
    (group,) = rollouts.draw([prompt])
    told, *others = group.replies
    assert told.ids == script
    assert set(told.maps) == {"misalignment", "artifact"}
    assert told.maps["artifact"].shape == prompt.artifact.shape
    # The maps are those that the heads make of the states before both tokens.
    visual = group.visual[None]
    state = state_before(checkpoint, group, script)
    merge = checkpoint.processor.merge_size
    cells = tuple(side // merge for side in checkpoint.processor.grid)
    with torch.no_grad():
        wanted = checkpoint.model.heatmap_logits(state, visual, cells).sigmoid()[0]
    torch.testing.assert_close(told.maps["artifact"].clone(), wanted, atol=1e-4, rtol=1e-4)
    rewarded = OfficialRewards(dict.fromkeys(REWARDS, 1.0), "code")([group])
    assert rewarded.unread == len(others)
    assert set(rewarded.terms) == set(REWARDS)
    assert rewarded.terms["semantic_score"][0] == pytest.approx(1.0, abs=0.02)
    total = sum(values[0] for values in rewarded.terms.values())
    assert float(rewarded.totals[0, 0]) == pytest.approx(total)
    some = OfficialRewards({"overall_score": 2.0}, "code")([group])
    assert float(some.totals[0, 0]) == pytest.approx(2.0, abs=0.04)


def state_before(checkpoint: Checkpoint, group: Group, script: list[int]) -> torch.Tensor:
    config = checkpoint.model.config
    ids = torch.tensor([[*group.prompt.ids, *script]])
    pixels = torch.from_numpy(group.prompt.patches)
    with torch.no_grad():
        outputs = checkpoint.model(ids, pixels, [(1, *checkpoint.processor.grid)])
    place = len(group.prompt.ids) + script.index(config.artifact_token_id) - 1
    return outputs.hidden[:, place]


def scripted(rollouts: Rollouts, script: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the first reply of a batch write a script, and the others end at once."""
    from tts_verifier.verifiers.imagedoctor.engine import decode_step

    taken: list[int] = []

    def sample(scores: torch.Tensor, *_: Any) -> torch.Tensor:
        chosen = torch.full((len(scores),), script[-1])
        chosen[0] = script[min(len(taken), len(script) - 1)]
        taken.append(1)
        return chosen

    monkeypatch.setattr(decode_step, "sample", sample)


def test_prompts_are_shared_and_come_in_a_new_order_in_every_epoch(
    checkpoint: Checkpoint, settings: GrpoSettings, source: PromptSource
) -> None:
    whole = [p.prompt for step in range(2) for p in source.step(step, range(2))]
    assert len(set(whole)) == 4
    parts = [
        p.prompt for step in range(2) for n in (0, 1) for p in source.step(step, range(n, n + 1))
    ]
    assert parts == whole
    again = [p.prompt for step in (2, 3) for p in source.step(step, range(2))]
    assert sorted(again) == sorted(whole)
    ahead = list(prompts_ahead(source, range(1, 3), range(2)))
    assert [step for step, _ in ahead] == [1, 2]
    assert [p.prompt for _, prompts in ahead for p in prompts] == whole[2:] + again[:2]
    assert list(prompts_ahead(source, range(0), range(2))) == []
    kept = PromptSource(checkpoint, replace(settings, in_memory=True), seed=0)
    for one, other in zip(source.step(0, range(2)), kept.step(0, range(2)), strict=True):
        assert one.ids == other.ids
        assert np.array_equal(one.patches, other.patches)
        assert np.array_equal(one.artifact, other.artifact)
