"""Several scores become one number: by sum, worst, mean rank or priority; what is missing."""

from math import inf, isnan, nan

import pytest
from PIL import Image

from tts_verifier.choice.objective import Objective, with_objectives
from tts_verifier.errors import InputError
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Draw, Look, Prompt, Trial, Verdict

ROWS = [{"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.8}, {"a": 0.5, "b": 0.2}]
GAPS = [{"a": 0.9}, {"a": 0.5, "b": 0.8}, {"a": nan, "b": 0.2}, {}]
BOTH = {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective(BOTH), [1.0, 1.3, 0.7]),
        (Objective(BOTH, "worst"), [0.1, 0.5, 0.2]),
        (Objective({"a": 1.0, "b": 5.0}, "worst"), [0.5, 0.5, 0.5]),
        (Objective(BOTH, "mean_rank"), [0.5, 0.625, 0.375]),
        (Objective({"a": 3.0, "b": 1.0}, "mean_rank"), [0.75, 0.4375, 0.3125]),
        (Objective({"a": 1.0, "b": -1.0}, "mean_rank"), [1.0, 0.125, 0.375]),
        (Objective(BOTH, "lexicographic"), [1.0, 0.5, 0.0]),
        (Objective({"a": -1.0, "b": 1.0}, "lexicographic"), [0.0, 1.0, 0.5]),
        (Objective(BOTH, "lexicographic", step=0.9), [0.25, 1.0, 0.25]),
    ],
    ids=repr,
)
def test_every_combination_of_whole_rows(objective: Objective, expected: list) -> None:
    assert objective.among(ROWS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("sum", [1.8, 1.3, 0.4, nan]),
        ("worst", [0.9, 0.5, 0.2, nan]),
        ("mean_rank", [1.0, 0.5, 0.0, nan]),
        ("lexicographic", [1.0, 0.5, 0.0, nan]),
    ],
)
def test_a_missing_score_is_left_out_or_fails_in_every_combination(
    combine: str, expected: list
) -> None:
    skipping = Objective(BOTH, combine, missing="skip")  # type: ignore[arg-type]
    assert skipping.among(GAPS) == pytest.approx(expected, nan_ok=True)
    failing = Objective(BOTH, combine)  # type: ignore[arg-type]
    found = failing.among(GAPS)
    assert [isnan(value) for value in found] == [True, False, True, True]
    assert failing.among([]) == []


def test_one_image_alone_is_the_first_by_rank_and_has_a_stand_in_before() -> None:
    ranked, ordered = Objective(BOTH, "mean_rank"), Objective(BOTH, "lexicographic")
    assert ranked.among(ROWS[:1]) == ordered.among(ROWS[:1]) == [1.0]
    assert ranked.relative
    assert ordered.relative
    assert not Objective(BOTH, "worst").relative
    assert ranked(ROWS[0]) == 1.0
    assert ordered(ROWS[0]) == 0.9
    assert Objective(BOTH, "worst")(ROWS[0]) == 0.1
    assert isnan(ordered({"a": 0.9}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"combine": "mean"}, "combine must be one of sum, worst, mean_rank, lexicogr.* 'mean'"),
        ({"missing": "zero"}, "missing must be one of fail, skip, got 'zero'"),
        ({"step": 0.1}, "step must be .* belongs to combine 'lexicographic', got 0.1 with 'sum'"),
        ({"combine": "lexicographic", "step": -1}, "step must be a finite number, not negative"),
    ],
)
def test_unusable_options_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(BOTH, **values)


def test_what_identifies_an_objective_keeps_the_order_of_its_scores() -> None:
    assert Objective(BOTH).about() == BOTH
    assert Objective(BOTH, "lexicographic", missing="skip").about() == {
        "weights": [["a", 1.0], ["b", 1.0]],
        "combine": "lexicographic",
        "missing": "skip",
        "step": 0.0,
    }
    assert repr(Objective(BOTH, "worst")) == "Objective({'a': 1.0, 'b': 1.0}, combine='worst')"


def test_trials_are_ranked_among_those_of_the_same_detail_and_progress() -> None:
    def trial(name: str, a: float, progress: float = 1.0, detail: str = "score") -> Trial:
        verdict = Verdict({"a": a}, detail=detail)  # type: ignore[arg-type]
        proposal = Look("x") if detail == "diagnose" else Draw(1)
        return Trial(name, Prompt("0", "x"), 0, proposal, progress, verdict, 9.0)

    history = [
        *(trial("p", 0.1, 0.5), trial("q", 0.2, 0.5), trial("r", 0.3), trial("s", 0.4)),
        *(trial("t", 0.9, detail="diagnose"), Trial("u", Prompt("0", "x"), 0, Draw(2), 1.0)),
    ]
    ranked = with_objectives(history, Objective({"a": 1.0}, "mean_rank"))
    assert [t.objective for t in ranked[:-1]] == [0.0, 1.0, 0.0, 1.0, 1.0]
    assert isnan(ranked[-1].objective)
    assert with_objectives(history, Objective({"a": 1.0})) == history


def test_images_are_reranked_by_their_ranks() -> None:
    colours = [Image.new("RGB", (2, 2), c) for c in ("#808000", "#ff0000", "#00ff00")]
    objective = Objective({"semantic_alignment": 1.0, "aesthetics": 3.0}, "mean_rank")
    ranking = FakeVerifier().rerank(colours, "x", objective=objective)
    assert [item.index for item in ranking] == [2, 0, 1]
    assert [item.objective for item in ranking] == pytest.approx([0.75, 0.5, 0.25])
    looked = FakeVerifier().rerank(colours, "x", objective=objective, looks=2)
    assert [item.index for item in looked] == [2, 0, 1]


def test_a_sigma_of_the_sum_follows_from_those_of_the_scores() -> None:
    scores = {"a": 0.5, "a_sigma": 0.3, "b": 0.5, "b_sigma": 0.4}
    assert Objective(BOTH).sigma(scores) == pytest.approx(0.5)
    assert Objective({"a": 2.0}).sigma(scores) == pytest.approx(0.6)
    for none in (nan, -1.0, inf, None):
        assert Objective(BOTH).sigma({"a": 0.5, "a_sigma": none}) == 0.0
    assert Objective({"a": 2.0}).sigma({"a": 0.5, "a_sigma": 1e200}) == 2e200
    assert Objective(BOTH, "worst").sigma(scores) == 0.0
