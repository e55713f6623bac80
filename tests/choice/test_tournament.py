"""Which images are compared, and the order that comparisons make."""

from math import nan

import numpy as np
import pytest
from histories import IMAGE, maps
from PIL import Image

from tts_verifier import BestOfN, run
from tts_verifier.choice.objective import choose
from tts_verifier.choice.tournament import both_orders, by_comparisons, near_ties
from tts_verifier.choice.views import mark_of, preference, views
from tts_verifier.errors import InputError, RunError, RunWarning
from tts_verifier.testing import FakeComparer, FakeGenerator, FakeVerifier
from tts_verifier.types import Compare, Draw, Look, Prompt, Trial, Verdict


def trial(name: str, objective: float, proposal: object = None, progress: float = 1.0) -> Trial:
    return Trial(name, Prompt("0", "x"), 0, proposal or Draw(1), progress, None, objective)


def versus(one: str, other: str, preferred: float) -> Trial:
    return trial(f"{one}{other}", preferred, Compare(one, other))


FOUR = [trial("a", 0.9), trial("b", 0.89), trial("c", 0.8), trial("d", nan)]


@pytest.mark.parametrize(
    ("count", "near", "pairs"),
    [
        (4, 0.0, []),
        (4, 0.01, ["ab"]),
        (2, 0.5, ["ab"]),
        (4, 0.1, ["ab", "ac", "bc"]),
        (4, 9.0, ["ab", "ac", "bc"]),
    ],
)
def test_the_best_are_compared_as_far_as_they_are_near(
    count: int, near: float, pairs: list
) -> None:
    order = choose(FOUR).order
    assert ["".join(pair) for pair in near_ties(order, count, near=near)] == pairs


def test_only_images_of_the_same_detail_are_compared_and_by_the_trials_that_made_them() -> None:
    looks = [trial("A", 0.5, Look("a")), trial("B", 0.5, Look("b"))]
    order = choose([*FOUR, *looks]).order
    assert [t.id for t in order] == ["A", "B", "c", "d"]
    assert near_ties(order, 4, near=1.0) == [("a", "b")]
    assert near_ties([], 4) == near_ties([trial("d", nan)], 4) == []


def test_comparisons_rank_the_images_at_the_top() -> None:
    history = [*FOUR, versus("a", "b", 0.2), versus("a", "c", 0.9), versus("b", "c", 0.9)]
    assert [t.id for t in choose(history).order] == ["b", "a", "c", "d"]
    assert choose(history).trial is FOUR[1]
    circle = [versus("a", "b", 0.0), versus("a", "c", 1.0), versus("b", "c", 0.0)]
    assert [t.id for t in choose([*FOUR, *circle]).order] == ["a", "b", "c", "d"]
    failed = [versus("b", "a", nan), versus("a", "c", 0.4), versus("c", "b", 0.8)]
    assert [t.id for t in choose([*FOUR, *failed]).order] == ["c", "a", "b", "d"]


def test_images_that_were_not_all_compared_keep_their_place() -> None:
    history = [*FOUR, versus("a", "c", 0.1), versus("b", "c", 0.1)]
    assert [t.id for t in choose(history).order] == ["a", "b", "c", "d"]
    newer = [trial("e", 0.95), *history, versus("e", "a", 0.3)]
    assert [t.id for t in choose(newer).order] == ["a", "e", "b", "c", "d"]
    assert by_comparisons([], []) == []


def test_a_look_shows_in_the_place_that_its_image_won() -> None:
    looks = [trial("A", 0.5, Look("a")), trial("B", 0.5, Look("b"))]
    history = [*FOUR, *looks, versus("a", "b", 0.2)]
    assert [t.id for t in choose(history).order] == ["B", "A", "c", "d"]


def test_the_views_of_an_image_are_it_and_four_crops_of_its_size() -> None:
    seen = views(IMAGE)
    assert seen[0] is IMAGE
    assert [view.size for view in seen] == [IMAGE.size] * 5


def test_the_better_and_cooler_image_is_preferred() -> None:
    def view(score: float, heat: float) -> Verdict:
        grid = np.zeros((64, 64), np.float32)
        grid[:7, :7] = heat
        return Verdict({"a": score}, maps(misalignment=grid, artifact=1 - grid))

    def objective(scores: dict) -> float:
        return scores.get("a", nan)

    hot, cool = (mark_of([view(0.5, heat)] * 2, objective) for heat in (0.5, 0.48))
    assert hot.value == pytest.approx(0.0)
    assert preference(cool, hot).scores["preferred"] == pytest.approx(0.88, abs=0.01)
    assert preference(hot, hot).scores["preferred"] == 0.5
    assert preference(cool, hot).text == (
        "first objective 0.5000, heat 0.4800, second objective 0.5000, heat 0.5000"
    )
    better = mark_of([view(0.6, 0.5)], objective)
    assert preference(better, cool).scores["preferred"] > 0.9
    plain = mark_of([Verdict({"a": 0.4}), Verdict({"a": 0.6}), Verdict({"a": nan})], objective)
    assert plain.value == pytest.approx(0.5)
    finer = mark_of([Verdict({"a": 0.4, "a_expected": 0.43})], objective)
    assert finer.value == 0.43
    unknown = mark_of([Verdict({})], objective)
    assert str(preference(plain, unknown).scores["preferred"]) == "nan"


def test_rerank_compares_the_best_as_a_run_does() -> None:
    class Bluest(FakeVerifier):
        def compare(self, first, second, prompts):
            return FakeComparer().compare(first, second, prompts)

    reds = [Image.new("RGB", (8, 8), (255, 0, blue)) for blue in (10, 90, 50, 0)]
    verifier = Bluest(lambda image, prompt: {"overall": 0.9 if image.getpixel((0, 0))[2] else 0.4})
    objective = {"overall": 1.0}
    ranking = verifier.rerank(reds, "x", objective=objective)
    assert [item.index for item in ranking] == [0, 1, 2, 3]
    ranking = verifier.rerank(reds, "x", objective=objective, ties=4)
    assert [item.index for item in ranking] == [1, 2, 0, 3]
    ranking = verifier.rerank(reds, "x", objective=objective, ties=2)
    assert [item.index for item in ranking] == [1, 0, 2, 3]


def test_rerank_compares_only_images_of_one_detail_and_a_failed_comparison_is_a_tie() -> None:
    class Silent(FakeVerifier):
        def compare(self, first, second, prompts):
            asked.append(len(first))
            return [Verdict({}) for _ in first]

    asked: list[int] = []
    greys = [Image.new("RGB", (8, 8), (grey,) * 3) for grey in (10, 10, 10, 10)]
    with pytest.warns(RunWarning, match="1 of 1 comparisons have no usable preference"):
        ranking = Silent().rerank(greys, "x", looks=2, ties=4, near=9.0)
    assert (asked, [item.index for item in ranking]) == ([2], [0, 1, 2, 3])
    assert len(Silent().rerank(greys[:1], "x", ties=4)) == 1
    assert asked == [2]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"ties": 1}, "ties must be a number of images, 0 or at least 2, got 1"),
        ({"ties": True}, "ties must be a number of images"),
        ({"ties": 2, "near": -0.1}, "near must be a finite number, not negative, got -0.1"),
    ],
)
def test_rerank_refuses_other_numbers(option: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FakeVerifier().rerank([IMAGE], "x", **option)


@pytest.mark.parametrize(
    ("there", "back"), [(1.5, 0.9), (-1.0, -1.0), (nan, 0.0), (None, 0.5), ("0.7", 0.5)]
)
def test_a_preference_out_of_range_is_none(there: object, back: object) -> None:
    assert str(both_orders(there, back)) == "nan"  # type: ignore[arg-type]


def test_a_preference_may_be_out_of_range_by_rounding() -> None:
    assert both_orders(1.0000001, -1e-7) == 1.0
    assert both_orders(-1e-7, 1.0000001) == 0.0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("no connection"), "RuntimeError: no connection"),
        (
            [0.5, 0.5],
            "each of 2 pairs, in a list; it returned a float",
        ),
        ([], "each of 2 pairs, in a list; it returned 0"),
    ],
)
def test_a_comparer_that_fails_costs_rerank_no_verdict(answer: object, reason: str) -> None:
    class Comparing(FakeVerifier):
        def compare(self, first, second, prompts):
            if isinstance(answer, Exception):
                raise answer
            return answer

    with pytest.warns(RunWarning, match=reason):
        ranking = Comparing().rerank([IMAGE, IMAGE], "x", ties=2)
    assert [item.index for item in ranking] == [0, 1]


def test_rerank_names_a_verifier_that_returns_no_verdicts() -> None:
    class Numbers(FakeVerifier):
        def verify(self, images, prompts, *, detail="diagnose"):
            return [{"overall": 1.0} for _ in images]

    with pytest.raises(RunError, match="Numbers must return a verdict for each of 1"):
        Numbers().rerank([IMAGE], "x")
    with pytest.raises(RunError, match="images, in a list; it returned a dict"):
        run(["x"], FakeGenerator(), Numbers(), BestOfN(1))


def test_an_order_without_any_usable_score_is_a_warning() -> None:
    class Mute(FakeVerifier):
        def verify(self, images, prompts, *, detail="diagnose"):
            return [Verdict({"overall": nan}, error="no answer in time") for _ in images]

    with pytest.warns(RunWarning, match=r"No image has a usable score, so .*: no answer in time"):
        assert len(Mute().rerank([IMAGE, IMAGE], "x", objective={"overall": 1.0})) == 2
