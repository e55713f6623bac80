"""Drafts: few steps for many, all steps for the best; and how a pipeline draws them."""

from math import nan

import pytest
from histories import TASK, seed, trial

from tts_verifier import run
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.identity import proposal_from_json, proposal_to_json, trial_id
from tts_verifier.strategies.drafts import Drafting
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import Drafts, Draw, Job, Prompt

DRAFTS = [Draw(seed(i), pace=0.4) for i in range(3)]


def test_the_best_drafts_are_drawn_again_in_all_steps() -> None:
    search = Drafting(3, 2)
    assert search.propose(TASK, []) == DRAFTS
    history = [trial(n, 0, d, v) for n, d, v in zip("abc", DRAFTS, (0.2, nan, 0.9), strict=True)]
    refined = [Draw(seed(2)), Draw(seed(0))]
    assert search.propose(TASK, history) == refined
    assert search.propose(TASK, [*history, trial("d", 1, refined[0], 0.5)]) == []
    failed = [trial("a", 0, DRAFTS[0], nan, image=None, error="x")]
    assert search.propose(TASK, failed) == []


def test_a_run_costs_the_drafts_and_the_refined() -> None:
    result = run(["x"], FakeGenerator(steps=10), FakeVerifier(), Drafting(6, 2, pace=0.4))
    assert sum(t.cost.network_evaluations for t in result.trials) == 2 * (6 * 4 + 2 * 10)
    assert result.summaries[0].candidates == 8


def test_it_conforms() -> None:
    check_strategy(Drafting(4, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 2, "keep": 3}, "keep must be at most n, got 3 of 2"),
        ({"pace": 1.0}, r"pace must be in \(0, 1\), got 1.0"),
        ({"n": 0}, "n must be a positive integer"),
    ],
)
def test_unusable_arguments_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Drafting(**values)


def test_ids_of_other_draws_stay_what_they_were() -> None:
    assert proposal_to_json(Draw(1)) == '{"kind":"draw","noise":null,"seed":1,"until":1.0}'
    draft = Draw(1, pace=0.5)
    assert proposal_from_json(proposal_to_json(draft), lambda digest: None) == draft
    assert trial_id("x", draft, {}) != trial_id("x", Draw(1), {})
    rewritten = Draw(1, rewrite="abc")
    assert proposal_from_json(proposal_to_json(rewritten), lambda digest: None) == rewritten


class Proposing:
    needs = frozenset({Draw})

    def __init__(self, *rounds):
        self.rounds = rounds

    def propose(self, task, history):
        number = len({t.round for t in history})
        return self.rounds[number] if number < len(self.rounds) else []


class Plain(FakeGenerator):
    supports = frozenset({Draw})


@pytest.mark.parametrize(
    ("generator", "draw", "message"),
    [
        (Plain(), Draw(1, pace=0.5), "the generator cannot draw drafts"),
        (FakeGenerator(), Draw(1, pace=1.5), r"a draft needs a pace in \(0, 1\]"),
        (FakeGenerator(), Draw(1, until=0.5, pace=0.5), "a draft needs a pace"),
        (FakeGenerator(), Draw(1, rewrite="gone"), "there is no trial 'gone'"),
        (Plain(), Draw(1, rewrite="gone"), "cannot draw from a rewritten prompt"),
    ],
)
def test_a_wrong_draft_is_refused(generator: object, draw: Draw, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(["x"], generator, FakeVerifier(), Proposing([draw]))


def test_a_strategy_of_drafts_needs_a_generator_of_drafts() -> None:
    with pytest.raises(UnsupportedError, match="draw drafts in fewer steps, Plain cannot"):
        run(["x"], Plain(), FakeVerifier(), Drafting())


@pytest.fixture(scope="module")
def bundled() -> DiffusersGenerator:
    return DiffusersGenerator("shapes", device="cpu", batch_size=2, steps=4)


def test_a_pipeline_draws_a_draft_in_fewer_steps(bundled: DiffusersGenerator) -> None:
    prompt = Prompt("0", "a red circle")
    draft, whole = bundled.generate([Job(prompt, Draw(1, pace=0.5)), Job(prompt, Draw(1))])
    assert draft.cost.network_evaluations == whole.cost.network_evaluations / 2
    assert draft.progress == whole.progress == 1
    assert draft.image.size == whole.image.size


def test_a_call_with_fixed_steps_draws_no_drafts(bundled: DiffusersGenerator) -> None:
    fixed = bundled.with_call({"sigmas": [1.0, 0.5]})
    assert fixed.lacks[Drafts] == "its call lists sigmas, so the number of steps is fixed"
    assert Drafts not in fixed.supports
    assert Drafts in bundled.supports
    with pytest.raises(UnsupportedError, match="cannot draw drafts: its call lists sigmas"):
        fixed.generate([Job(Prompt("0", "a red circle"), Draw(1, pace=0.5))])
