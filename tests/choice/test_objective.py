"""One number to climb, one order, one choice; what fails never wins."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tts_verifier.choice.objective import Objective, before_look, choose, order
from tts_verifier.choice.ranking import Ranked, Ranking
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Draw, Look, Prompt, Trial, Verdict

NAN = math.nan


def test_the_default_is_the_official_reward() -> None:
    scores = {"semantic_alignment": 1.0, "aesthetics": 0.5, "plausibility": 0.0, "overall": 0.3}
    assert Objective()(scores) == pytest.approx(0.85)


@pytest.mark.parametrize("scores", [{}, {"a": NAN}, {"b": 1.0}, {"a": math.inf}])
def test_a_missing_or_unusable_score_is_nan(scores: dict[str, float]) -> None:
    assert math.isnan(Objective({"a": 1})(scores))


def test_a_score_of_weight_zero_is_not_needed() -> None:
    assert Objective({"a": 2.0, "b": 0.0})({"a": 0.5}) == 1.0


@pytest.mark.parametrize(
    "weights",
    [
        *({}, {"a": 0.0}, {"a": NAN}, {"a": 1.0, "b": math.inf}, {"a": 10**400}, {"a": True}),
        *({"a": "1"}, {"a": None}, {"a": 1j}, {1: 1.0}, [("a", 1.0)], ["a"], "a", 5),
    ],
)
def test_unusable_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InputError, match="An objective needs"):
        Objective(weights)


def test_a_name_that_is_no_score_is_refused_with_a_similar_one() -> None:
    objective = Objective({"aesthetics": 1.0, "plausability": 0.5})
    objective.check_names(None)
    objective.check_names(["aesthetics", "plausability"])
    with pytest.raises(InputError, match=r"got 'plausability'\. Did you mean 'plausibility'"):
        objective.check_names(["aesthetics", "plausibility"])


def test_an_objective_shows_its_weights() -> None:
    assert repr(Objective({"a": 1.0})) == "Objective({'a': 1.0})"


def test_equal_values_keep_their_order_and_nan_comes_last() -> None:
    assert order([0.5, NAN, 0.9, 0.5, -math.inf, NAN]) == [2, 0, 3, 4, 1, 5]


@given(st.lists(st.floats()))
def test_an_order_is_a_permutation_from_best_to_worst(values: list[float]) -> None:
    ranked = [values[i] for i in order(values)]
    assert sorted(order(values)) == list(range(len(values)))
    usable = [v for v in ranked if not math.isnan(v)]
    assert usable == sorted(usable, reverse=True)
    assert all(math.isnan(v) for v in ranked[len(usable) :])


def trial(name: str, objective: float, progress: float = 1.0, proposal: object = None) -> Trial:
    return Trial(name, Prompt("0", "x"), 0, proposal or Draw(1), progress, None, objective)


def test_the_best_finished_trial_is_chosen() -> None:
    history = [trial("a", 0.5), trial("b", 0.9, progress=0.5), trial("c", 0.7), trial("d", NAN)]
    choice = choose(history)
    assert choice.trial is not None
    assert choice.trial.id == "c"
    assert [t.id for t in choice.order] == ["c", "a", "d"]


QUICK = [trial("a", 0.9), trial("b", 0.8), trial("c", 0.7), trial("d", 0.6)]
FAILED = {"error": "the reply has no usable score"}


def look(at: str, objective: float, **changes: str) -> Trial:
    return replace(trial(at.upper(), objective, proposal=Look(at)), **changes)


@pytest.mark.parametrize(
    ("looks", "order"),
    [
        ([], "a b c d"),
        ([look("a", 0.1)], "A b c d"),
        ([look("a", 0.1), look("b", 0.2)], "B A c d"),
        ([look("b", 0.2), look("a", 0.1), look("c", 0.95)], "C B A d"),
        ([look("b", 0.95)], "a B c d"),
        ([look("a", 0.1), look("c", 0.95)], "A b C d"),
        ([look("a", NAN, **FAILED)], "a b c d"),
        ([look("a", NAN, **FAILED), look("b", 0.2)], "B a c d"),
        ([look("a", NAN, **FAILED), look("b", NAN, **FAILED)], "a b c d"),
    ],
)
def test_looks_rank_the_images_at_the_top_that_were_all_looked_at(looks: list, order: str) -> None:
    choice = choose([*QUICK, *looks])
    assert " ".join(t.id for t in choice.order) == order
    assert choice.trial is choice.order[0]


def test_a_look_may_rescue_an_image_whose_quick_reply_was_not_usable() -> None:
    failed = replace(trial("a", NAN), **FAILED)
    assert [t.id for t in choose([failed, look("a", 0.2)]).order] == ["A"]
    assert [t.id for t in choose([failed, trial("b", 0.1), look("a", 0.2)]).order] == ["b", "A"]


def test_the_trial_before_a_look_is_the_one_that_compares_with_others() -> None:
    looked = look("b", 0.2)
    assert before_look(looked, [*QUICK, looked]) is QUICK[1]
    assert before_look(QUICK[0], QUICK) is QUICK[0]


@pytest.mark.parametrize("history", [[], [trial("a", NAN)], [trial("a", 0.5, progress=0.2)]])
def test_nothing_usable_is_no_choice(history: list[Trial]) -> None:
    assert choose(history).trial is None


def test_a_ranking_is_a_sequence_best_first() -> None:
    colours = [Image.new("RGB", (2, 2), c) for c in ("blue", "red", "white")]
    ranking = FakeVerifier().rerank(colours, "a red square")
    assert [item.index for item in ranking] == [2, 1, 0]
    assert ranking.best is ranking[0]
    assert ranking[0].objective == pytest.approx(1.0)
    assert isinstance(ranking[1:], Ranking)
    assert [item.index for item in ranking[1:]] == [1, 0]
    assert repr(ranking) == "Ranking(2: 1.000, 1: 0.800, 0: 0.100)"


def test_a_ranking_by_another_objective() -> None:
    colours = [Image.new("RGB", (2, 2), c) for c in ("blue", "red")]
    ranking = FakeVerifier().rerank(colours, "x", objective=Objective({"plausibility": 1.0}))
    assert [item.index for item in ranking] == [0, 1]
    ranking = FakeVerifier().rerank(colours, "x", objective={"plausibility": 1.0})
    assert [item.index for item in ranking] == [0, 1]
    ranking = FakeVerifier().rerank(colours, "x", objective=lambda scores: -scores["aesthetics"])
    assert isinstance(ranking[0], Ranked)


@pytest.mark.parametrize("objective", [Objective({"overal": 1.0}), {"overal": 1.0}])
def test_a_ranking_by_a_misspelt_score_is_refused(objective: object) -> None:
    colours, known = [Image.new("RGB", (2, 2), c) for c in ("blue", "red")], FakeVerifier()
    unknown = FakeVerifier(lambda image, prompt: {"overall": 0.5})
    for verifier in (known, unknown):
        with pytest.raises(InputError, match=r"got 'overal'\. Did you mean 'overall'"):
            verifier.rerank(colours, "x", objective=objective)
    # A verifier that says its names is not asked for a verdict first.
    assert known.trace == []
    with pytest.raises(InputError, match="must be an Objective or weights"):
        known.rerank(colours, "x", objective="overall")


def test_an_unusable_score_ranks_last() -> None:
    red = FakeVerifier(unparsable=lambda image, prompt: image.getpixel((0, 0))[0] > 0)
    ranking = red.rerank([Image.new("RGB", (2, 2), c) for c in ("red", "blue")], "x")
    assert [item.index for item in ranking] == [1, 0]
    assert isinstance(ranking[1].verdict, Verdict)
    assert ranking[1].verdict.text == "no idea"


def test_nothing_cannot_be_ranked() -> None:
    with pytest.raises(InputError, match="rerank needs at least one image"):
        FakeVerifier().rerank([], "x")


def test_one_prompt_for_each_image() -> None:
    with pytest.raises(InputError, match="got 1 images and 2 prompts"):
        FakeVerifier().verify([Image.new("RGB", (2, 2))], ["a", "b"])


class Reversed(FakeVerifier):
    """Diagnoses the opposite of its quick scores, and cannot read what is pure red."""

    def verify(self, images, prompts, *, detail="diagnose"):
        verdicts = super().verify(images, prompts, detail=detail)
        if detail == "score":
            return verdicts
        unread = [v.scores["semantic_alignment"] == 1 for v in verdicts]
        return [
            replace(v, scores={k: NAN if bad else 1 - s for k, s in v.scores.items()})
            for v, bad in zip(verdicts, unread, strict=True)
        ]


GREYS = [Image.new("RGB", (2, 2), (level,) * 3) for level in (51, 204, 102, 153)]


def test_a_ranking_in_two_tiers_diagnoses_only_the_best() -> None:
    verifier = Reversed()
    ranking = verifier.rerank(GREYS, "x", looks=2)
    assert verifier.trace == ["l4", "v2"]
    assert [item.index for item in ranking] == [3, 1, 2, 0]
    assert [item.objective for item in ranking] == pytest.approx([0.4, 0.2, 0.4, 0.2])
    details = [item.verdict.detail for item in ranking]
    assert details == ["diagnose", "diagnose", "score", "score"]
    assert [item.verdict.cost.verifier_calls for item in ranking] == [2, 2, 1, 1]
    assert [bool(item.verdict.heatmaps) for item in ranking] == [True, True, False, False]
    everything = verifier.rerank(GREYS, "x", looks=4)
    assert [item.index for item in everything] == [0, 2, 3, 1]


def test_an_unusable_diagnosis_in_a_ranking_leaves_the_quick_verdict() -> None:
    white = Image.new("RGB", (2, 2), "white")
    ranking = Reversed().rerank([*GREYS, white], "x", looks=2)
    assert [item.index for item in ranking] == [1, 4, 3, 2, 0]
    assert ranking[1].verdict.detail == "score"
    assert ranking[1].verdict.cost.verifier_calls == 2
    assert Reversed().rerank([*GREYS, white], "x", looks=1).best.index == 4


@pytest.mark.parametrize("looks", [0, -1, 5, True, 1.0])
def test_a_ranking_refuses_looks_that_are_no_number_of_its_images(looks: object) -> None:
    with pytest.raises(InputError, match="looks must be a number from 1 to 4, the number of imag"):
        FakeVerifier().rerank(GREYS, "x", looks=looks)


def test_a_ranking_in_two_tiers_needs_a_verifier_with_both() -> None:
    class Quick(FakeVerifier):
        details = ("score",)

    with pytest.raises(UnsupportedError, match="Quick has score only"):
        Quick().rerank(GREYS, "x", looks=1)
