"""What a step counts: one reply far from the range of scores must not decide a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tts_verifier.training.grpo.losses import advantages_of
from tts_verifier.training.grpo.measures import OfficialRewards, counts_of, means_of
from tts_verifier.training.grpo.prompts import PromptSource
from tts_verifier.training.grpo.rewards import REWARDS, SCORE_REWARDS
from tts_verifier.training.grpo.rewards.terms import Scaling
from tts_verifier.training.grpo.rollouts import DrawnReply, Group
from tts_verifier.training.verifier.answers import answer_text
from tts_verifier.types.score_names import SCORE_NAMES

ALL = dict.fromkeys(REWARDS, 1.0)
FIRST = "semantic_score"


def group_of(source: PromptSource, *semantic: float) -> Group:
    """A group whose truth is 0.5, with a reply for each first score."""
    (prompt,) = source.step(0, range(1))
    half = dict.fromkeys(SCORE_NAMES, 0.5)
    answers = [answer_text(half | {SCORE_NAMES[0]: score}) for score in semantic]
    texts = [f"<think>…</think><answer>{answer}" for answer in answers]
    replies = [DrawnReply(t, [1], np.zeros(1, np.float32), {}) for t in texts]
    return Group(replace(prompt, scores=[0.5] * 4), torch.zeros(1, 1), replies)


@pytest.mark.parametrize(("scaling", "lowest"), [("code", -2.0), ("paper", 0.0)])
def test_a_score_far_from_its_range_counts_as_the_lowest_and_is_counted(
    source: PromptSource, scaling: Scaling, lowest: float
) -> None:
    group = group_of(source, 0.5, 60, 3000)
    rewarded = OfficialRewards(ALL, scaling)([group])
    assert rewarded.terms[FIRST].tolist() == [1.0, lowest, lowest]
    assert rewarded.bounded == 2
    official = OfficialRewards(ALL, scaling, bound_scores=False)([group])
    assert official.bounded == 0
    assert official.terms[FIRST].tolist() == pytest.approx(
        [1.0, *(1 - (1 - lowest) * (s - 0.5) for s in (60, 3000))]
    )
    # The mean of the step's reward is the sum of the means of its terms in both cases.
    for found in (rewarded, official):
        row = means_of(counts_of([group], found, [0]))
        assert row["reward"] == pytest.approx(sum(row[f"reward_{name}"] for name in REWARDS))
        assert row["bounded_share"] == pytest.approx(found.bounded / 3)


def test_what_scores_in_their_range_get_stays_as_it_is(source: PromptSource) -> None:
    group = group_of(source, 0.0, 0.25, 1.0, 1.3)
    bounded, official = (
        OfficialRewards(ALL, "code", bound_scores=b)([group]) for b in (True, False)
    )
    assert torch.equal(bounded.totals, official.totals)
    assert bounded.bounded == 0


def test_the_other_replies_of_a_group_are_still_told_apart(source: PromptSource) -> None:
    group = group_of(source, 0.5, 0.25, 0.5, 0.25, 30000)
    for bound, least in ((True, 0.3), (False, 0.0)):
        totals = OfficialRewards(ALL, "code", bound_scores=bound)([group]).totals
        advantages = advantages_of(totals)[0][0]
        assert bool(advantages[0] - advantages[1] > least) is True
        assert bool(advantages[0] - advantages[1] > 0.01) is bound


def test_only_scores_have_no_lower_end(source: PromptSource) -> None:
    assert [name for name in REWARDS if name not in SCORE_REWARDS] == list(REWARDS)[4:]
    maps = {name: 1.0 for name in REWARDS if name not in SCORE_REWARDS}
    assert OfficialRewards(maps, "code")([group_of(source, 0.5, 60)]).bounded == 0
