"""k of n by quality and diversity: bounds, invariances, and how near the optimum it comes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tts_verifier.choice import choose_subset, layout_and_colour
from tts_verifier.errors import InputError
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier

NUMBER = st.one_of(st.floats(-10, 10), st.just(math.nan))
CANDIDATES = st.lists(st.tuples(NUMBER, st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)
SHARE = st.floats(0, 1)


def parts(candidates):
    return [c[0] for c in candidates], np.array([c[1:] for c in candidates])


def value(chosen, values, features, diversity):
    """The value of a set of at least two by the module's definition, computed anew."""
    usable = [i for i, v in enumerate(values) if not math.isnan(v)]
    rank = {
        i: (sum(values[j] < values[i] for j in usable) + sum(values[j] <= values[i] for j in usable)
            - 1) / 2 / (len(usable) - 1)
        for i in usable
    }  # fmt: skip
    far = max(np.linalg.norm(features[i] - features[j]) for i in usable for j in usable) or 1
    pairs = list(itertools.combinations(chosen, 2))
    spread = sum(np.linalg.norm(features[i] - features[j]) / far for i, j in pairs) / len(pairs)
    return (1 - diversity) * sum(rank[i] for i in chosen) / len(chosen) + diversity * spread


@given(CANDIDATES, st.integers(1, 10), SHARE)
def test_the_best_comes_first_and_no_unusable_one_is_chosen(candidates, k, diversity) -> None:
    values, features = parts(candidates)
    chosen = choose_subset(values, features, k, diversity=diversity)
    usable = [v for v in values if not math.isnan(v)]
    assert len(chosen) == len(set(chosen)) == min(k, len(usable))
    assert all(not math.isnan(values[i]) for i in chosen)
    assert not chosen or values[chosen[0]] == max(usable)


@given(CANDIDATES, st.integers(1, 10))
def test_without_diversity_they_are_the_k_best(candidates, k) -> None:
    values, features = parts(candidates)
    chosen = choose_subset(values, features, k, diversity=0)
    best = sorted((v for v in values if not math.isnan(v)), reverse=True)[:k]
    assert [values[i] for i in chosen] == best


@settings(max_examples=60)
@given(CANDIDATES, st.integers(2, 4), SHARE)
def test_no_exchange_of_one_image_would_be_better(candidates, k, diversity) -> None:
    values, features = parts(candidates)
    chosen = choose_subset(values, features, k, diversity=diversity)
    usable = {i for i, v in enumerate(values) if not math.isnan(v)}
    if len(chosen) < 2 or len(usable) <= k:
        return
    mine = value(chosen, values, features, diversity)
    for old, new in itertools.product(chosen[1:], usable - set(chosen)):
        other = [new if i == old else i for i in chosen]
        assert value(other, values, features, diversity) <= mine + 1e-6


def test_sets_come_near_the_best_possible() -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(15):
        values, features = rng.normal(size=10).tolist(), rng.normal(size=(10, 4))
        chosen = choose_subset(values, features, 4, diversity=0.5)
        others = itertools.combinations(set(range(10)) - {chosen[0]}, 3)
        best = max(value((chosen[0], *o), values, features, 0.5) for o in others)
        shares.append(value(chosen, values, features, 0.5) / best)
    assert min(shares) > 0.95
    assert np.mean(shares) > 0.995


def test_copies_of_the_best_give_way_to_another_image() -> None:
    features = [[0.0], [0.0], [0.0], [1.0]]
    assert choose_subset([1.0, 0.99, 0.98, 0.9], features, 2, diversity=0.6) == [0, 3]
    assert choose_subset([1.0, 0.99, 0.98, 0.9], features, 2, diversity=0.0) == [0, 1]


def test_neither_scale_nor_offset_of_values_and_features_matter() -> None:
    rng = np.random.default_rng(1)
    values, features = rng.normal(size=12), rng.normal(size=(12, 3))
    once = choose_subset(values.tolist(), features, 5)
    assert choose_subset((1000 * values - 7).tolist(), 0.01 * features + 5, 5) == once


def test_equal_images_are_taken_by_quality() -> None:
    assert choose_subset([0.1, 0.3, 0.2], np.zeros((3, 2)), 2, diversity=1.0) == [1, 2]


def test_features_tell_layouts_and_colours_apart() -> None:
    red, blue = (Image.new("RGB", (40, 30), c) for c in ("red", "blue"))
    half = red.copy()
    half.paste(blue.crop((0, 0, 20, 30)), (0, 0))
    mirrored = half.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rows = layout_and_colour([red, red.resize((90, 80)), blue, half, mirrored])
    assert rows.shape == (5, 256)
    assert np.allclose(rows[0], rows[1])
    gaps = [np.linalg.norm(rows[a] - rows[b]) for a, b in ((0, 2), (0, 3), (3, 4))]
    assert gaps[0] > gaps[1] > 0.1
    assert gaps[2] > 0.1


IMAGES = [Image.new("RGB", (8, 8), c) for c in ("white", "#fffffe", "#fefeff", "yellow", "black")]


def test_a_ranking_gives_a_set() -> None:
    ranking = FakeVerifier().rerank(IMAGES, "x", objective={"overall": 1.0})
    assert [item.index for item in ranking.subset(2, diversity=0)] == [0, 1]
    subset = ranking.subset(3, diversity=0.5)
    assert [item.index for item in subset] == [0, 3, 4]
    assert subset.best is ranking.best
    assert len(ranking.subset(9)) == 5


def test_quick_scores_and_diagnoses_are_not_compared() -> None:
    ranking = FakeVerifier().rerank(IMAGES, "x", objective={"overall": 1.0}, looks=2)
    assert [item.index for item in ranking.subset(3, diversity=0)] == [0, 1, 2]


def test_an_embedding_of_ones_own_decides_what_differs() -> None:
    ranking = FakeVerifier().rerank(IMAGES, "x", objective={"overall": 1.0})
    odd = ranking.subset(2, diversity=0.9, embed=lambda images: [[0], [0], [9], [0], [0]])
    assert [item.index for item in odd] == [0, 2]


def test_arguments_of_a_set_are_checked_before_images_are_embedded() -> None:
    ranking = FakeVerifier().rerank(IMAGES, "x", objective={"overall": 1.0})
    result = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(2))
    for choose in (ranking.subset, result.subsets):
        with pytest.raises(InputError, match="k must be a number from 1 up, got 0"):
            choose(0, embed=lambda images: pytest.fail("it embeds"))
        with pytest.raises(InputError, match="embed must be a function that turns images into fe"):
            choose(2, embed=3)


def test_a_run_gives_a_set_for_each_prompt() -> None:
    generator = FakeGenerator(fails=lambda job: job.prompt.text == "fails")
    result = run(["a", "fails"], generator, FakeVerifier(), BestOfN(6))
    subsets = result.subsets(3)
    assert subsets["0000"][0] is result.choices["0000"].trial
    assert len({t.id for t in subsets["0000"]}) == 3
    assert subsets["0001"] == ()


def test_a_set_of_a_run_with_a_folder_is_read_from_it(tmp_path) -> None:
    result = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(4), folder=tmp_path / "run")
    assert len(result.subsets(2)["0000"]) == 2


@pytest.mark.parametrize(
    ("k", "diversity", "features", "message"),
    [
        (0, 0.5, [[0], [1]], r"k must be a number from 1 up, got 0\."),
        (True, 0.5, [[0], [1]], r"k must be a number from 1 up, got True\."),
        (2.0, 0.5, [[0], [1]], r"k must be a number from 1 up, got 2\.0\."),
        (1, 1.5, [[0], [1]], r"diversity must be in \[0, 1\], got 1\.5\."),
        (1, math.nan, [[0], [1]], r"diversity must be in \[0, 1\], got nan\."),
        (1, "much", [[0], [1]], r"diversity must be in \[0, 1\], got 'much'\."),
        (1, 0.5, [[0]], r"of shape \(2, d\), a row for each image, got \(1, 1\)\."),
        (1, 0.5, [0, 1], r"of shape \(2, d\), a row for each image, got \(2,\)\."),
        (1, 0.5, [[0], [math.nan]], r"got \(2, 1\) with NaN or infinity\."),
        (1, 0.5, torch.ones((2, 1), requires_grad=True), r"Features must be numbers, .*grad"),
        (1, 0.5, [["a"], ["b"]], r"Features must be numbers, a row for each image: "),
        (1, 0.5, [[0], [1, 2]], r"Features must be numbers, a row for each image: "),
    ],
)
def test_what_cannot_be_used_is_refused(k, diversity, features, message) -> None:
    with pytest.raises(InputError, match=message):
        choose_subset([0.0, 1.0], features, k, diversity=diversity)
