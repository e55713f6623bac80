"""The loop, on fakes: order of calls, lineage, budgets, failures, wrong proposals."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searches import InpaintReroll, SeedBeam

from tts_verifier import Objective, run
from tts_verifier.errors import InputError, RunError, RunWarning, UnsupportedError
from tts_verifier.identity import seed_for
from tts_verifier.log import read_trials
from tts_verifier.strategies.adaptive import Adaptive
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.zero_order import ZeroOrder
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import (
    Budget,
    Continue,
    Draw,
    Job,
    Look,
    LowBand,
    Mask,
    Near,
    Prompt,
    Proposal,
    Repaint,
    Sample,
    Task,
    Trial,
)

RED = "a red circle"


class Table:
    """Proposes fixed rounds, made from the history so far."""

    needs: frozenset[type] = frozenset()

    def __init__(self, *rounds: object) -> None:
        self.rounds = rounds

    def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
        done = 1 + max((t.round for t in history), default=-1)
        if done == len(self.rounds):
            return []
        proposals = self.rounds[done]
        return proposals(history) if callable(proposals) else proposals


class Spy(FakeGenerator):
    """Notes the prompt and the ancestors of every job."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__(batch_size)
        self.prompts: list[str] = []
        self.lines: list[list[str]] = []

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        self.prompts += [job.prompt.text for job in jobs]
        self.lines += [[t.id for t in job.ancestors] for job in jobs]
        return super().generate(jobs)


def shared_trace(**options: object) -> tuple[FakeGenerator, FakeVerifier]:
    generator, verifier = FakeGenerator(**options), FakeVerifier()
    verifier.trace = generator.trace
    return generator, verifier


def test_batches_fill_across_prompts() -> None:
    generator, verifier = shared_trace(batch_size=8)
    run([f"prompt {i}" for i in range(3)], generator, verifier, BestOfN(6))
    assert " ".join(generator.trace) == "g8 v8 g8 v8 g2 v2"


def test_a_prompt_goes_on_in_batches_with_the_beginning_of_others() -> None:
    spy = Spy(batch_size=2)
    rounds = ([Draw(1), Draw(2)], lambda h: [Draw(3, noise=Near(h[0].id, 0.5))])
    run(["a", "b", "c"], spy, FakeVerifier(), Table(*rounds))
    assert " ".join(spy.trace) == "g2 g2 g2 g2 g1"
    # Those under way go first, in one batch with the next one's beginning: few are open at once.
    assert spy.prompts == ["a", "a", "a", "b", "b", "c", "c", "b", "c"]


def test_looks_generate_nothing_and_are_full() -> None:
    generator, verifier = shared_trace(batch_size=4)
    result = run(["a", "b"], generator, verifier, InpaintReroll(n=2), detail="score")
    assert " ".join(generator.trace) == "g4 l4 v2 g4 l4"
    scored, looked = result.trials[0], next(t for t in result.trials if t.round == 1)
    assert (len(scored.verdict.heatmaps), scored.verdict.detail) == (0, "score")
    assert (sorted(looked.verdict.heatmaps), looked.verdict.detail) == (
        ["artifact", "misalignment"],
        "diagnose",
    )
    assert looked.cost.network_evaluations == 0
    assert looked.cost.generate_seconds == 0
    assert looked.cost.verifier_calls == 1


def test_the_chosen_is_the_best_and_the_result_has_its_image() -> None:
    result = run([RED, "a blue star"], FakeGenerator(), FakeVerifier(), BestOfN(5))
    assert list(result.choices) == ["0000", "0001"]
    for name, choice in result.choices.items():
        values = [t.objective for t in result.trials if t.prompt.id == name]
        assert len(values) == 5
        assert choice.trial is not None
        assert choice.trial.objective == max(values)
        assert result.images[name].size == (16, 16)


def test_the_same_run_gives_the_same_trials_whatever_the_batch() -> None:
    def ids(batch_size: int) -> list[tuple[str, float]]:
        generator = FakeGenerator(batch_size=batch_size)
        result = run([RED, "b", "c"], generator, FakeVerifier(), SeedBeam())
        return [(t.id, t.objective) for t in result.trials]

    assert ids(1) == ids(3) == ids(100)


def test_a_seed_beam_hands_the_states_down() -> None:
    result = run([RED], FakeGenerator(batch_size=3), FakeVerifier(), SeedBeam(width=4))
    rounds = [[t for t in result.trials if t.round == r] for r in range(3)]
    assert [len(r) for r in rounds] == [4, 4, 4]
    assert [{t.progress for t in r} for r in rounds] == [{0.4}, {0.7}, {1.0}]
    assert all(t.parent_id in {p.id for p in rounds[1]} for t in rounds[2])
    # A whole image takes 20 evaluations: 8 to 0.4, then back by 0.1 and on to 0.7 and to 1.0.
    assert [{t.cost.network_evaluations for t in r} for r in rounds] == [{8}, {8}, {8}]
    assert result.choices["0000"].trial in rounds[2]


def test_ancestors_go_from_the_parent_to_the_root() -> None:
    spy = Spy()
    first = [Draw(1)]
    chain = [lambda h: [Draw(len(h) + 1, noise=Near(h[-1].id, 0.5))]] * 3
    result = run([RED], spy, FakeVerifier(), Table(first, *chain))
    a, b, c, d = (t.id for t in result.trials)
    assert spy.lines == [[], [a], [b, a], [c, b, a]]
    assert [t.parent_id for t in result.trials] == [None, a, b, c]
    assert len({a, b, c, d}) == 4


def test_noise_near_a_parent_makes_an_image_near_it() -> None:
    near, far = (
        run([RED], FakeGenerator(), FakeVerifier(), ZeroOrder(2, 1, radius=r)) for r in (0.05, 1.0)
    )

    def distance(trials: Sequence[Trial]) -> float:
        pixels = [np.asarray(t.image.load(), float) for t in trials[:2]]
        return float(np.abs(pixels[0] - pixels[1]).mean())

    assert distance(near.trials) < 5 < distance(far.trials)


def test_low_frequencies_of_the_noise_can_be_given() -> None:
    grey = Draw(5, noise=LowBand((0.0,) * 3, 2))
    red = Draw(5, noise=LowBand((8.0, -8.0, -8.0), 2))
    result = run([RED], FakeGenerator(), FakeVerifier(), Table([grey, red]))
    means = [np.asarray(t.image.load(), float).mean((0, 1)) for t in result.trials]
    assert np.abs(means[0] - 128).max() < 10
    assert means[1][0] > 200 > 60 > means[1][1]


def test_a_repaint_keeps_what_is_not_masked() -> None:
    left = np.zeros((16, 16), np.bool_)
    left[:, :8] = True
    rounds = ([Draw(1)], lambda h: [Repaint(h[0].id, Mask.of(left), 2)])
    old, new = run([RED], FakeGenerator(), FakeVerifier(), Table(*rounds)).trials
    before, after = np.asarray(old.image.load()), np.asarray(new.image.load())
    assert (before[:, 8:] == after[:, 8:]).all()
    assert (before[:, :8] != after[:, :8]).any()
    assert new.cost.vae_passes == 2


def test_a_lost_state_is_generated_again_from_the_lineage() -> None:
    class Forgetful(FakeGenerator):
        """Keeps no state the first time."""

        seen: frozenset[str] = frozenset()

        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            samples = super().generate(jobs)
            fresh = [str(j.proposal) not in self.seen for j in jobs]
            self.seen |= {str(j.proposal) for j in jobs}
            return [
                Sample(s.job, s.image, s.progress, s.cost, None if new else s.state)
                for s, new in zip(samples, fresh, strict=True)
            ]

    kept = run([RED], FakeGenerator(), FakeVerifier(), SeedBeam())
    lost = run([RED], Forgetful(), FakeVerifier(), SeedBeam())
    assert [(t.id, t.objective) for t in kept.trials] == [(t.id, t.objective) for t in lost.trials]


def test_a_lineage_is_generated_again_under_its_own_ids() -> None:
    class Stateless(FakeGenerator):
        """Keeps no state the first time, and notes every job."""

        def __init__(self) -> None:
            super().__init__()
            self.jobs: list[tuple[str, int]] = []

        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            new = [(job.id, job.round) not in self.jobs for job in jobs]
            self.jobs += [(job.id, job.round) for job in jobs]
            samples = super().generate(jobs)
            return [replace(s, state=None) if n else s for s, n in zip(samples, new, strict=True)]

    generator = Stateless()
    result = run([RED], generator, FakeVerifier(), SeedBeam())
    assert set(generator.jobs) == {(trial.id, trial.round) for trial in result.trials}
    assert len(generator.jobs) > len(result.trials), "some were generated again"


def test_a_state_that_cannot_be_generated_again_costs_its_candidates_only() -> None:
    class Breaking(FakeGenerator):
        """Keeps no state, and fails on a request that it has served before."""

        seen: frozenset[str] = frozenset()

        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            samples = super().generate(jobs)
            again = [str(job.proposal) in self.seen for job in jobs]
            self.seen |= {str(job.proposal) for job in jobs}
            return [
                Sample(s.job, None, error="worn out") if old else Sample(s.job, s.image, s.progress)
                for s, old in zip(samples, again, strict=True)
            ]

    rounds = ([Draw(1, until=0.5), Draw(2)], lambda h: [Continue(h[0].id, 1.0, 3), Draw(4)])
    with pytest.warns(RunWarning, match="could not be generated again: worn out"):
        result = run([RED], Breaking(), FakeVerifier(), Table(*rounds))
    half, whole, continued, other = result.trials
    assert not any(trial.error for trial in (half, whole, other))
    assert "could not be generated again: worn out" in continued.error


def test_a_generator_without_states_cannot_continue() -> None:
    class Stateless(FakeGenerator):
        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            return [Sample(s.job, s.image, s.progress) for s in super().generate(jobs)]

    with pytest.raises(InputError, match="Stateless must give an unfinished image a state"):
        run([RED], Stateless(), FakeVerifier(), SeedBeam())


# -- budgets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "trials"),
    [
        (Budget(candidates=5), 5),
        (Budget(candidates=3), 3),
        (Budget(verifier_calls=4), 4),
        (Budget(network_evaluations=40), 2),  # one draw is 20
        (Budget(network_evaluations=59), 2),
        (Budget(seconds=1e-9), 3),
        (Budget(candidates=100), 8),
    ],
)
def test_a_spent_budget_ends_the_search_with_a_choice(budget: Budget, trials: int) -> None:
    generator = FakeGenerator(batch_size=3)
    result = run([RED], generator, FakeVerifier(), BestOfN(8), budget=budget)
    assert len(result.trials) == trials
    assert result.choices["0000"].trial is not None


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("limit", [30, 70, 79, 100])
def test_no_round_overshoots_the_evaluations_left(limit: int, overlap: bool) -> None:
    strategies = [BestOfN(8), InpaintReroll(2, 4), SeedBeam(4), ZeroOrder(3)]
    for strategy in strategies:
        budget, prompts = Budget(network_evaluations=limit), ["a", "b"]
        generator = FakeGenerator(batch_size=8)
        options = {"budget": budget, "overlap": overlap}
        done = run(prompts, generator, FakeVerifier(), strategy, **options)  # type: ignore[arg-type]
        for name in done.choices:
            mine = [t.cost.network_evaluations for t in done.trials if t.prompt.id == name]
            assert 0 < sum(mine) <= limit


def test_a_search_of_which_nothing_fits_any_more_ends() -> None:
    budget = Budget(network_evaluations=10)
    prompts = ["a", "b"]
    done = run(prompts, FakeGenerator(), FakeVerifier(), BestOfN(3), budget=budget)
    prompts_of_trials = [t.prompt.id for t in done.trials]
    # The first image of each is generated: its cost is not known before.
    assert prompts_of_trials == ["0000", "0001"]


def test_a_budget_is_each_prompts_own_and_tasks_say_it() -> None:
    seen: list[tuple[str, int | None]] = []

    class Watcher(ZeroOrder):
        def propose(self, task: Task, history: Sequence[Trial]) -> list[Proposal]:
            seen.append((task.prompt.id, task.budget.candidates))
            return super().propose(task, history)

    prompts = [Prompt("x", "a"), Prompt("y", "b")]
    result = run(prompts, FakeGenerator(), FakeVerifier(), Watcher(2), budget=Budget(candidates=4))
    assert sorted(seen) == [("x", 1), ("x", 3), ("x", 4), ("y", 1), ("y", 3), ("y", 4)]
    assert len(result.trials) == 8


def test_a_look_is_a_call_but_no_candidate() -> None:
    generator, verifier = FakeGenerator(), FakeVerifier()
    result = run([RED], generator, verifier, InpaintReroll(2, 2), budget=Budget(candidates=4))
    assert len(result.trials) == 5
    result = run([RED], generator, verifier, InpaintReroll(2, 2), budget=Budget(verifier_calls=4))
    assert len(result.trials) == 4


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="Every limit of a budget must be positive"):
        run([RED], FakeGenerator(), FakeVerifier(), BestOfN(1), budget=Budget(candidates=0))


# -- failures ----------------------------------------------------------------------------


def test_a_failed_image_is_a_trial_with_its_reason() -> None:
    bad = seed_for(0, RED, 1)
    generator = FakeGenerator(fails=lambda job: job.proposal.seed == bad)
    result = run([RED], generator, FakeVerifier(), BestOfN(3))
    assert [t.error for t in result.trials] == ["", "fails on purpose", ""]
    failed = result.trials[1]
    assert math.isnan(failed.objective)
    assert (failed.image, failed.scores, failed.cost.verifier_calls) == (None, {}, 0)
    assert failed not in result.choices["0000"].order


def test_a_sample_without_an_image_or_a_reason_gets_one() -> None:
    class Silent(FakeGenerator):
        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            return [Sample(job, None) for job in jobs]

    result = run([RED], Silent(), FakeVerifier(), BestOfN(1))
    assert result.trials[0].error == "the generator gave no image"
    assert result.choices["0000"].trial is None
    assert result.images == {}


def test_a_reply_that_does_not_parse_is_nan_with_its_text() -> None:
    dark = FakeVerifier(unparsable=lambda image, prompt: image.getpixel((0, 0))[0] < 128)
    result = run([RED], FakeGenerator(), dark, BestOfN(12))
    bad = [t for t in result.trials if t.error]
    assert 0 < len(bad) < 12
    assert {t.verdict.text for t in bad} == {"no idea"}
    assert all(math.isnan(t.scores["aesthetics"]) for t in bad)
    assert bad[0].error == (
        "the reply has no usable semantic_alignment, aesthetics, plausibility, overall"
    )
    assert result.choices["0000"].trial is not None


def test_a_score_that_a_reply_leaves_out_is_a_reason_too() -> None:
    def scores(image: object, prompt: str) -> dict[str, float]:
        return {"overall": 0.5} if prompt == RED else {"other": 0.5}

    options: Any = {"objective": Objective({"overall": 1.0})}
    result = run([RED, "x"], FakeGenerator(), FakeVerifier(scores), BestOfN(1), **options)
    assert result.trials[1].error == "the reply has no usable score for the objective"


MISSPELT = r"must name scores that the verifier gives, got 'overal'\. Did you mean 'overall'\?"


@pytest.mark.parametrize(
    ("strategy", "objective"),
    [
        (BestOfN(2), Objective({"overal": 1.0})),
        (BestOfN(2), {"overall": 1.0, "overal": 0.0}),
        (Adaptive(BestOfN(2), {"overal": 0.5}), None),
        (Adaptive(Adaptive(BestOfN(2), {"overal": 0.5}), {"overall": 0.5}), None),
    ],
)
def test_a_misspelt_score_is_refused_before_anything_is_drawn(
    strategy: Any, objective: Any
) -> None:
    generator = FakeGenerator()
    with pytest.raises(InputError, match=MISSPELT):
        run([RED], generator, FakeVerifier(), strategy, objective=objective)
    assert generator.trace == []


@pytest.mark.parametrize("overlap", [False, True])
def test_a_verifier_that_does_not_say_its_scores_is_asked_with_the_first_batch(
    overlap: bool, tmp_path: Path
) -> None:
    verifier, generator = FakeVerifier(lambda image, prompt: {"overall": 0.5}), FakeGenerator(2)
    options: Any = {"objective": {"overal": 1}, "overlap": overlap, "folder": tmp_path}
    with pytest.raises(InputError, match=MISSPELT):
        run([RED], generator, verifier, BestOfN(8), **options)
    assert generator.trace == ["g2"]
    # What was drawn is in the log, for another objective to judge.
    assert len(read_trials(tmp_path)) == 2


def test_replies_without_any_score_do_not_say_which_ones_there_are() -> None:
    replies = iter([{}, {"overall": 0.5}, {"overall": 0.7}])
    verifier = FakeVerifier(lambda image, prompt: next(replies))
    options: Any = {"objective": {"overall": 1}}
    result = run([RED], FakeGenerator(1), verifier, BestOfN(3), **options)
    assert [bool(t.error) for t in result.trials] == [True, False, False]


@pytest.mark.parametrize("objective", ["overall", 0.5, [("overall", 1.0)], lambda scores: 1.0])
def test_an_objective_is_one_or_its_weights(objective: Any) -> None:
    with pytest.raises(InputError, match=r"must be an Objective or weights by score name, such as"):
        run([RED], FakeGenerator(), FakeVerifier(), BestOfN(1), objective=objective)


@pytest.mark.parametrize("what", ["sample", "verdict"])
def test_a_wrong_number_of_answers_is_an_error(what: str) -> None:
    class Short(FakeGenerator):
        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            return super().generate(jobs)[1:]

    class Brief(FakeVerifier):
        def verify(self, *args: object, **kwargs: object) -> list:
            return super().verify(*args, **kwargs)[1:]

    generator = Short() if what == "sample" else FakeGenerator()
    verifier = Brief() if what == "verdict" else FakeVerifier()
    with pytest.raises(RunError, match=f"must return a {what} for each of 3"):
        run([RED], generator, verifier, BestOfN(3))


@pytest.mark.parametrize("given", [None, "images", "nothing"])
def test_samples_come_in_a_list(given: str | None) -> None:
    class Bare(FakeGenerator):
        def generate(self, jobs: Sequence[Job]) -> Any:
            images = [sample.image for sample in super().generate(jobs)]
            return {"images": images, "nothing": [None] * len(jobs)}.get(str(given))

    with pytest.raises(RunError, match="a sample for each of 3 jobs, in a list; it returned a"):
        run([RED], Bare(), FakeVerifier(), BestOfN(3))


@pytest.mark.parametrize("given", [None, Draw(1), "draw"])
def test_proposals_come_in_a_list(given: Any) -> None:
    strategy = Table()
    strategy.propose = lambda task, history: given  # type: ignore[method-assign]
    with pytest.raises(InputError, match="must return its proposals in a list, which is empty wh"):
        run([RED], FakeGenerator(), FakeVerifier(), strategy)


def test_a_generator_without_settings_is_refused() -> None:
    class Bare:
        supports = frozenset({Draw})

        def generate(self, jobs: Sequence[Job]) -> list[Sample]:
            return []

    with pytest.raises(InputError, match="which lacks settings, batch_size"):
        run([RED], Bare(), FakeVerifier(), BestOfN(3))  # type: ignore[arg-type]


# -- the judge ---------------------------------------------------------------------------


def test_the_judge_sees_finished_images_once() -> None:
    judge = FakeVerifier(lambda image, prompt: {"passed": 1.0})
    result = run([RED], FakeGenerator(), FakeVerifier(), InpaintReroll(2, 1), judge=judge)
    assert judge.trace == ["l2", "l1"], "the look has its parent's"
    assert all(t.judge == {"passed": 1.0} for t in result.trials)
    judge.trace.clear()
    result = run([RED], FakeGenerator(), FakeVerifier(), SeedBeam(2), judge=judge)
    assert judge.trace == ["l2"]
    assert [bool(t.judge) for t in result.trials] == [False] * 4 + [True] * 2


# -- proposals that make no sense ----------------------------------------------------------

MASK = Mask.of(np.ones((16, 16), np.bool_))
WRONG = {
    "no proposal": ([5], "that is not a proposal"),
    "unknown parent": ([Look("nobody")], "there is no trial 'nobody'"),
    "again": ([Draw(1)], r"\(seed=1, .*twice"),
    "twice": ([Draw(2), Draw(2)], "twice"),
    "finished": (lambda h: [Continue(h[0].id, 1.0, 2)], "must be an unfinished candidate"),
    "unfinished": (lambda h: [Repaint(h[1].id, MASK, 2)], "must be a finished candidate"),
    "failed": (lambda h: [Look(h[2].id)], "its parent has no image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_proposal_names_the_strategy_and_the_reason(case: str) -> None:
    proposals, reason = WRONG[case]
    first = [Draw(1), Draw(11, until=0.5), Draw(666)]
    generator = FakeGenerator(fails=lambda job: job.proposal.seed == 666)
    with pytest.raises(InputError, match=f"^Table proposed .*{reason}"):
        run([RED], generator, FakeVerifier(), Table(first, proposals))


def test_noise_is_near_a_drawn_image_only() -> None:
    rounds = (
        [Draw(1)],
        lambda h: [Repaint(h[0].id, MASK, 1)],
        lambda h: [Draw(3, noise=Near(h[1].id, 0.5))],
    )
    with pytest.raises(InputError, match="Near needs a parent that was generated from noise"):
        run([RED], FakeGenerator(), FakeVerifier(), Table(*rounds))


class DrawsOnly(FakeGenerator):
    supports: frozenset[type] = frozenset({Draw})


def test_a_kind_that_the_generator_cannot_do_is_an_error() -> None:
    with pytest.raises(UnsupportedError) as caught:
        run([RED], DrawsOnly(), FakeVerifier(), SeedBeam())
    assert str(caught.value) == (
        "SeedBeam needs a generator that can continue, DrawsOnly cannot. "
        "Choose another strategy or generator."
    )
    with pytest.raises(InputError, match="the generator cannot serve that kind"):
        run([RED], DrawsOnly(), FakeVerifier(), Table([Continue("x", 1.0, 1)]))


def test_noise_that_the_generator_cannot_be_given_is_an_error() -> None:
    with pytest.raises(InputError, match="the generator cannot start from such noise"):
        run([RED], DrawsOnly(), FakeVerifier(), Table([Draw(1, noise=LowBand((0.0,), 1))]))


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        (
            (None, FakeVerifier(), Table()),
            "generator must be an object with generate, supports, se",
        ),
        ((FakeGenerator(), FakeVerifier, Table()), "verifier must be an object with verify"),
        ((FakeGenerator(), FakeVerifier(), "best"), "strategy must be an object with propose and"),
    ],
)
def test_a_part_that_is_none_is_an_error(parts: tuple[Any, Any, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        run([RED], *parts)


def test_any_generator_allows_a_look() -> None:
    table = Table([Draw(1)], lambda h: [Look(h[0].id)])
    table.needs = frozenset({Draw, Look})
    assert len(run([RED], DrawsOnly(), FakeVerifier(), table).trials) == 2


# -- input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one prompt"),
        ("a red circle", "A list of prompts is needed"),
        ([" "], "Prompt 0 must be a text that is not empty"),
        ([None], "Prompt 0 must be a text"),
        (b"a red circle", "A list of prompts is needed"),
        (5, "A list of prompts is needed, got 5"),
        ({"prompt": "a"}, "A list of prompts is needed"),
        ({"a", "b"}, "A list of prompts is needed"),
        ([Prompt("x", "a"), Prompt("x", "b")], "Prompts 0 and 1 have the same id, 'x'"),
        (["\ud800"], "Prompt 0 must be valid Unicode"),
    ],
)
def test_unusable_prompts_are_refused(prompts: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(prompts, FakeGenerator(), FakeVerifier(), BestOfN(1))


def test_a_setting_that_fits_no_cell_is_refused() -> None:
    generator = FakeGenerator()
    generator.settings = {"scheduler": object()}
    with pytest.raises(InputError, match="scheduler of FakeGenerator is <object"):
        run([RED], generator, FakeVerifier(), BestOfN(1))


def test_a_detail_has_two_values() -> None:
    with pytest.raises(InputError, match="must be 'score' or 'diagnose', got 'deep'"):
        run([RED], FakeGenerator(), FakeVerifier(), BestOfN(1), detail="deep")


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    run([RED], FakeGenerator(), FakeVerifier(), BestOfN(3), progress=True)
    shown = capsys.readouterr().err
    assert "3 of 3" in shown
    assert " a second" in shown
    assert "best 0." in shown
