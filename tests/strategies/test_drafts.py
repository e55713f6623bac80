"""Drafts: few steps for many, all steps for the best; and how a pipeline draws them."""

from math import nan

import pytest
import torch
from diffusers.hooks import HookRegistry
from histories import TASK, seed, trial
from tiny_pipelines import same

from tts_verifier import run
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.identity import proposal_from_json, proposal_to_json, trial_id
from tts_verifier.strategies.drafts import Drafting
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_strategy
from tts_verifier.types import CachedDrafts, Drafts, Draw, Job, Prompt

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


def test_drafts_may_be_cached_and_the_refined_are_not() -> None:
    search = Drafting(2, 1, cached=True)
    drafts = [Draw(seed(i), pace=0.4, cached=True) for i in range(2)]
    assert search.needs == {Draw, Drafts, CachedDrafts}
    assert search.propose(TASK, []) == drafts
    history = [trial(n, 0, d, v) for n, d, v in zip("ab", drafts, (0.2, 0.9), strict=True)]
    assert search.propose(TASK, history) == [Draw(seed(1))]
    check_strategy(search)


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
        ({"cached": "yes"}, "cached must be true or false, got 'yes'"),
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
    cached = Draw(1, pace=0.5, cached=True)
    assert proposal_from_json(proposal_to_json(cached), lambda digest: None) == cached
    assert trial_id("x", cached, {}) != trial_id("x", draft, {})
    with pytest.raises(TypeError, match="cached must be true or false, got 1"):
        proposal_from_json('{"kind":"draw","seed":1,"cached":1}', lambda digest: None)
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


class Uncached(FakeGenerator):
    supports = frozenset({Draw, Drafts})


@pytest.mark.parametrize(
    ("generator", "draw", "message"),
    [
        (Plain(), Draw(1, pace=0.5), "the generator cannot draw drafts"),
        (FakeGenerator(), Draw(1, pace=1.5), r"a draft needs a pace in \(0, 1\]"),
        (FakeGenerator(), Draw(1, until=0.5, pace=0.5), "a draft needs a pace"),
        (Uncached(), Draw(1, pace=0.5, cached=True), "cannot draw drafts with a cache"),
        (FakeGenerator(), Draw(1, cached=True), "only a draft is cached, whose pace is below 1"),
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
    with pytest.raises(UnsupportedError, match="draw drafts with a cache, Uncached cannot"):
        run(["x"], Uncached(), FakeVerifier(), Drafting(cached=True))


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


def test_a_cached_draft_takes_all_steps_and_evaluates_some(bundled: DiffusersGenerator) -> None:
    prompt, cached = Prompt("0", "a red circle"), Draw(1, pace=0.5, cached=True)
    before, draft, _, after = bundled.generate(
        [Job(prompt, d) for d in (Draw(1), cached, Draw(2, pace=0.5, cached=True), Draw(1))]
    )
    assert draft.cost.network_evaluations == before.cost.network_evaluations / 2
    assert not same(draft.image, before.image)
    assert same(draft.image, bundled.generate([Job(prompt, cached)])[0].image)
    # Nothing of the cache is left in the pipeline.
    assert same(after.image, before.image)
    assert not hasattr(bundled.pipe.transformer, "_diffusers_hook")


def test_an_error_in_a_cached_draft_leaves_no_cache(
    bundled: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("broken on purpose")

    forward = bundled.pipe.transformer.forward
    monkeypatch.setattr(bundled.pipe.vae, "decode", fail)
    with pytest.raises(ValueError, match="broken on purpose"):
        bundled.generate([Job(Prompt("0", "a red circle"), Draw(1, pace=0.5, cached=True))])
    assert bundled.pipe.transformer.forward == forward


def test_a_denoiser_that_was_compiled_in_place_draws_no_cached_drafts(
    bundled: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What `Module.compile` sets; nothing is compiled before the first call.
    monkeypatch.setattr(bundled.pipe.transformer, "_compiled_call_impl", object())
    compiled = bundled.with_call({})
    assert "compiled in place" in compiled.lacks[CachedDrafts]
    assert Drafts in compiled.supports
    with pytest.raises(UnsupportedError, match=r"with a cache, Diffusers.*in place"):
        run(["x"], compiled, FakeVerifier(), Drafting(cached=True))


def test_a_transformer_that_torch_compile_returned_is_a_denoiser(
    bundled: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, call, job = (
        bundled.pipe.transformer,
        {"num_inference_steps": 4},
        Job(Prompt("0", "a red circle"), Draw(1, pace=0.5, cached=True)),
    )
    expected = bundled.with_call(call).generate([job])[0]
    # What other hooks of diffusers leave, such as those of offloading.
    monkeypatch.setattr(plain, "_diffusers_hook", HookRegistry(plain), raising=False)
    # Such a module has no truth value.
    compiled = torch.compile(plain, backend="eager")
    monkeypatch.setitem(vars(bundled.pipe), "transformer", compiled)
    found = bundled.with_call(call).generate([job])[0]
    assert same(found.image, expected.image)
    assert found.cost == expected.cost
    assert "forward" not in vars(plain)
