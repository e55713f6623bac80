from __future__ import annotations

import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_reference import LABELS, grounding, reference

from tts_verifier.errors import InputError
from tts_verifier.training.grpo.rewards import GROUNDING_REWARDS, REWARDS, total_rewards

PERFECT = (
    "<think>Proposed regions (xyxy): 1.[0,0,256,256]</think>\n<answer>"
    "Semantic Alignment score: 0.50; Aesthetic score: 0.60; Plausibility score: 0.70; "
    "Overall Impression score: 0.80</answer>"
)
SCORES = (0.5, 0.6, 0.7, 0.8)
QUARTER = np.zeros((288, 288), np.float32)
QUARTER[:144, :144] = 1
EMPTY = np.zeros((288, 288), np.float32)


def columns(count: int = 1, **changes: Any) -> dict[str, Any]:
    """The columns of as many perfect completions."""
    one = {
        "scores": SCORES,
        "misalignment_map": QUARTER,
        "artifact_map": QUARTER,
        "predicted_misalignment": QUARTER,
        "predicted_artifact": QUARTER,
    }
    return {name: [value] * count for name, value in one.items()} | changes


def test_the_names_and_their_order_are_those_of_the_official_registry() -> None:
    assert list(REWARDS) == [
        "semantic_score",
        "aesthetic_score",
        "plausibility_score",
        "overall_score",
        "misalignment_location_heatmap",
        "artifact_location_heatmap",
        "misalignment_boundingbox_iou",
        "artifact_boundingbox_iou",
        "artifact_boundingbox_avepixel",
        "misalignment_boundingbox_avepixel",
        "artifact_boundingbox_union",
        "misalignment_boundingbox_union",
    ]
    assert set(GROUNDING_REWARDS) == set(list(REWARDS)[6:])
    assert all(function.__name__ == name for name, function in REWARDS.items())
    assert all(function.__doc__ for function in REWARDS.values())


def test_a_perfect_completion_has_the_reward_of_twelve() -> None:
    table = total_rewards(None, [PERFECT, ""], **columns(2))
    assert list(table.terms) == list(REWARDS)
    assert table.total == pytest.approx([12, 2], abs=1e-6)
    assert table.complete.tolist() == [True, False]


def test_the_total_is_the_sum_of_the_functions_for_any_batch() -> None:
    texts = [PERFECT, "", PERFECT.replace("0.50", "0.9"), "[0,0,512,512][9,9,90,90]", "<answer>"]
    given_columns = columns(5, predicted_artifact=[QUARTER, None, EMPTY, QUARTER / 2, EMPTY])
    table = total_rewards(["a"] * 5, texts, **given_columns)
    single = {name: reward(["a"] * 5, texts, **given_columns) for name, reward in REWARDS.items()}
    assert {name: values.tolist() for name, values in table.terms.items()} == single
    assert table.total == pytest.approx(np.sum(list(single.values()), 0))
    # A completion does not depend on its batch.
    for row in range(5):
        own = {name: column[row : row + 1] for name, column in given_columns.items()}
        assert total_rewards(None, texts[row : row + 1], **own).total == pytest.approx(
            table.total[row : row + 1], abs=1e-6
        )


def test_a_selection_needs_its_own_columns_only() -> None:
    names = ("artifact_boundingbox_union", "semantic_score")
    table = total_rewards(None, [PERFECT], names=names, scores=[SCORES], artifact_map=[QUARTER])
    assert list(table.terms) == ["semantic_score", "artifact_boundingbox_union"]
    assert table.total == pytest.approx([2])


def test_the_paper_has_no_factors() -> None:
    text = PERFECT.replace("0.50", "0.80")
    half = columns(predicted_misalignment=[QUARTER / 2], predicted_artifact=[EMPTY])
    table = total_rewards(None, [text], scaling="paper", **half)
    found = {name: float(values[0]) for name, values in table.terms.items()}
    assert found["semantic_score"] == pytest.approx(0.7)
    assert found["misalignment_location_heatmap"] == pytest.approx(1 - 0.25 / 4)
    assert found["artifact_location_heatmap"] == pytest.approx(0.75)
    assert REWARDS["semantic_score"](None, [""], scaling="paper", **columns()) == [0.0]
    for name in GROUNDING_REWARDS:
        assert found[name] == pytest.approx(1)


def test_trl_calls_rewards_with_names_and_any_columns() -> None:
    messages = [[{"role": "assistant", "content": PERFECT}]]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": PERFECT}]}]]
    for completions in (messages, parts):
        for reward in REWARDS.values():
            found = reward(
                prompts=[[{"role": "user", "content": "…"}]],
                completions=completions,
                completion_ids=[[1, 2, 3]],
                image=[object()],
                trainer_state=None,
                **columns(),
            )
            assert found == pytest.approx([1.0], abs=1e-6)
            assert [type(value) for value in found] == [float]


def test_a_reward_is_a_plain_function_that_pickles() -> None:
    for reward in REWARDS.values():
        assert inspect.isfunction(reward)
        assert pickle.loads(pickle.dumps(reward)) is reward


def test_no_completions_have_no_rewards() -> None:
    table = total_rewards([], [], **columns(0))
    assert table.total.shape == (0,)
    assert REWARDS["artifact_boundingbox_union"]([], [], **columns(0)) == []


def test_scores_may_be_mappings_arrays_or_tensors() -> None:
    names = ("semantic_alignment", "aesthetics", "plausibility", "overall")
    for scores in (
        dict(zip(reversed(names), reversed(SCORES), strict=True)),
        np.array(SCORES),
        torch.tensor(SCORES, dtype=torch.float64),
    ):
        assert total_rewards(None, [PERFECT], **columns(scores=[scores])).total == pytest.approx(
            [12], abs=1e-6
        )


def test_maps_may_be_read_only_reversed_stacked_or_need_gradients() -> None:
    fixed = QUARTER.copy()
    fixed.flags.writeable = False
    for maps in (
        [fixed],
        [np.flip(np.flip(QUARTER).copy())],
        [QUARTER.astype(">f4")],
        [QUARTER > 0],
        QUARTER[None],
        torch.from_numpy(QUARTER)[None],
        [torch.tensor(QUARTER, requires_grad=True)],
    ):
        given_columns = columns(artifact_map=maps, predicted_artifact=maps)
        assert total_rewards(None, [PERFECT], **given_columns).total == pytest.approx(
            [12], abs=1e-6
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_on_an_accelerator_have_the_same_rewards() -> None:
    source = np.random.default_rng(0)
    for side in (16, 112, 288, 300):
        truth = source.random((288, 288), np.float32)
        own = [torch.from_numpy(source.random((side, side), np.float32)) for _ in range(4)]
        for maps in (own, [own[0], None, own[1].half().float(), own[2]]):
            given_columns = columns(4, artifact_map=[truth] * 4, predicted_artifact=maps)
            host = total_rewards(None, [PERFECT] * 4, **given_columns)
            given_columns["predicted_artifact"] = [m if m is None else m.cuda() for m in maps]
            device = total_rewards(None, [PERFECT] * 4, **given_columns)
            assert device.total == pytest.approx(host.total, abs=1e-5)


def test_nothing_that_is_given_is_changed() -> None:
    truth, own = np.random.default_rng(0).random((2, 40, 30), np.float32)
    before = truth.copy(), own.copy()
    total_rewards(
        None, [PERFECT], **columns(artifact_map=[truth], predicted_artifact=[torch.from_numpy(own)])
    )
    assert np.array_equal(truth, before[0])
    assert np.array_equal(own, before[1])


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[1" * 50_000,
        "[" + "1" * 100_000,
        "[" + " " * 100_000,
        "[1,1,1," * 14_000,
        "[0.5,1,5,5]" * 9_000,
        "<answer>" * 12_000,
        "<answer>" + "Semantic Alignment score: " * 4_000 + "</answer>",
        "<answer>Semantic Alignment score: " + "1." * 50_000 + "</answer>",
        "<answer>Overall Impression score: 0." + "3" * 100_000 + "</answer>",
        "<answer>" + "Semantic Alignment score: 1" * 4_000 + "</answer>",
    ],
)
def test_long_replies_are_read(text: str) -> None:
    table = total_rewards(None, [text], **columns())
    assert np.isfinite(table.total).all()


def test_boxes_beyond_the_limit_are_not_read() -> None:
    text = "[0,0,256,256]" * 1024 + "[0,0,512,512]"
    table = total_rewards(None, [text], **columns())
    assert table.terms["artifact_boundingbox_avepixel"] == pytest.approx([1])
    assert table.terms["artifact_boundingbox_iou"] == pytest.approx([0], abs=1e-9)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"scores": [(0.5, 0.6, 0.7)]}, r"four numbers in \[0, 1\].*scores\[0\]"),
    ({"scores": [(0.5, 0.6, 0.7, 1.1)]}, r"four numbers in \[0, 1\]"),
    ({"scores": [(0.5, 0.6, 0.7, -0.1)]}, r"four numbers in \[0, 1\]"),
    ({"scores": [(0.5, 0.6, 0.7, float("nan"))]}, r"Leave a picture without ratings out"),
    ({"scores": [(0.5, 0.6, 0.7, "1")]}, r"four numbers in \[0, 1\]"),
    ({"scores": [(0.5, 0.6, 0.7, None)]}, r"four numbers in \[0, 1\]"),
    ({"scores": [(0.5, 0.6, 0.7, True)]}, r"four numbers in \[0, 1\]"),
    ({"scores": ["0.5 0.6"]}, r"A list of scores\[0\] is needed"),
    ({"scores": [0.5]}, r"A list of scores\[0\] is needed"),
    ({"scores": [{"aesthetic": 1}]}, r"lacks semantic_alignment, aesthetics"),
    ({"scores": SCORES}, r"'scores' has 4 for 1 completions"),
    ({"artifact_map": [QUARTER, QUARTER]}, r"'artifact_map' has 2 for 1 completions"),
    ({"predicted_artifact": []}, r"'predicted_artifact' has 0 for 1 completions"),
    ({"artifact_map": "map.png"}, r"A list of artifact_map is needed"),
    ({"artifact_map": [None]}, r"artifact_map\[0\]"),
    ({"artifact_map": [(QUARTER * 255).astype(np.uint8)]}, r"holds uint8. Divide bytes by 255"),
    ({"artifact_map": [QUARTER * 255]}, r"artifact_map\[0\] has values in \[0, 255\]"),
    ({"artifact_map": [QUARTER - 0.5]}, r"values in \[-0.5, 0.5\]"),
    ({"artifact_map": [QUARTER * np.nan]}, r"without NaN"),
    ({"artifact_map": [QUARTER[0]]}, r"shape \(H, W\).*artifact_map\[0\] has \(288,\)"),
    ({"artifact_map": [np.zeros((2, 3, 3))]}, r"has \(2, 3, 3\)"),
    ({"artifact_map": [np.zeros((0, 3))]}, r"at least one pixel"),
    ({"artifact_map": [[[0.5], [0.5, 0.5]]]}, r"artifact_map\[0\] is list"),
    ({"artifact_map": [[["a"]]]}, r"artifact_map\[0\] is list"),
    ({"misalignment_map": [QUARTER * 2]}, r"misalignment_map\[0\]"),
    ({"predicted_artifact": [QUARTER * 2]}, r"predicted_artifact\[0\].*sigmoid to logits"),
    ({"predicted_misalignment": [QUARTER * np.nan]}, r"without NaN; predicted_misalignment\[0\]"),
    ({"predicted_artifact": [np.where(QUARTER > 0, np.nan, QUARTER)]}, r"predicted_artifact\[0\]"),
    ({"artifact_map": [np.where(np.eye(288) > 0, np.nan, QUARTER)]}, r"artifact_map\[0\]"),
    ({"predicted_misalignment": [torch.zeros(2, 2, dtype=torch.int64)]}, r"holds int64"),
    ({"predicted_misalignment": [torch.zeros(2)]}, r"predicted_misalignment\[0\] has \(2,\)"),
    ({"scaling": "both"}, r"'code' or 'paper', got 'both'"),
    ({"names": ["semantic"]}, r"got 'semantic'. Did you mean 'semantic_score'"),
    ({"names": []}, r"At least one reward is needed"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_columns_are_clear_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        total_rewards(None, [PERFECT], **columns(**changes))


def test_the_one_wrong_map_of_a_group_is_named() -> None:
    maps = [EMPTY, EMPTY[:9, :9], EMPTY[:9, :9] + 2, None]
    given_columns = columns(4, predicted_misalignment=maps, misalignment_map=[EMPTY[:9, :9]] * 4)
    with pytest.raises(InputError, match=r"predicted_misalignment\[2\] has values in \[2, 2\]"):
        total_rewards(None, [""] * 4, **given_columns)


@pytest.mark.parametrize("name", list(columns()))
def test_a_missing_column_is_named(name: str) -> None:
    given_columns = columns()
    del given_columns[name]
    with pytest.raises(InputError, match=f"needs the column '{name}'"):
        total_rewards(None, [PERFECT], **given_columns)


@pytest.mark.parametrize(
    "completion", [None, 3, [], [1, 2], [{"role": "assistant"}], [{"content": None}], b"a"]
)
def test_a_completion_that_is_no_text_is_an_error(completion: object) -> None:
    with pytest.raises(InputError, match="completion 1"):
        total_rewards(None, ["", completion], **columns(2))


def test_completions_are_a_list_and_have_as_many_prompts() -> None:
    with pytest.raises(InputError, match="A list of completions is needed"):
        total_rewards(None, PERFECT, **columns())
    with pytest.raises(InputError, match="'prompts' has 2 for 1 completions"):
        total_rewards(["a", "b"], [PERFECT], **columns())


COORDINATE = st.one_of(
    st.integers(-40, 560), st.floats(-40, 560).map(lambda value: round(value, 2))
)
BOX = st.tuples(*[COORDINATE] * 4).map(lambda corners: f"[{','.join(map(str, corners))}]")
NUMBER = st.sampled_from(["0.42;", "1;", ".9;", "0.7", "0.7.;", "-1;", "", "2;"])
LABEL_TEXTS = [pattern.partition("(")[0] for pattern in LABELS.values()]


@st.composite
def replies(draw: st.DrawFn) -> str:
    boxes = draw(st.lists(BOX, max_size=5))
    fields = "".join(label + draw(NUMBER) for label in LABEL_TEXTS)
    start, end = draw(st.sampled_from(["<answer>", ""])), draw(st.sampled_from(["</answer>", ""]))
    return f"{' '.join(boxes[1:])} {start}{fields}{end}{''.join(boxes[:1])}"


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    """Sparse or dense, of any small shape, or of the full size."""
    shape = draw(st.sampled_from([(1, 1), (2, 3), (18, 18), (7, 30), (288, 288), (300, 290)]))
    source = np.random.default_rng(draw(st.integers(0, 9)))
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    return (source.random(shape) * (source.random(shape) < share)).astype(np.float32)


@settings(max_examples=4)
@given(data=st.data())
def test_the_rewards_equal_loops_over_pixels(data: st.DataObject) -> None:
    texts = data.draw(st.lists(replies(), min_size=1, max_size=2))
    scores = data.draw(st.tuples(*[st.sampled_from([0, 0.25, 0.9, 1])] * 4))
    truths = {kind: data.draw(maps()) for kind in ("misalignment", "artifact")}
    same = data.draw(st.booleans())
    own = {
        kind: (truth * 0.75).astype(np.float32) if same else data.draw(st.none() | maps())
        for kind, truth in truths.items()
    }
    given_columns = {
        "scores": [scores] * len(texts),
        **{f"{kind}_map": [truth] * len(texts) for kind, truth in truths.items()},
        **{f"predicted_{kind}": [value] * len(texts) for kind, value in own.items()},
    }
    table = total_rewards(None, texts, **given_columns)
    for row, text in enumerate(texts):
        found = {name: float(values[row]) for name, values in table.terms.items()}
        assert found == pytest.approx(reference(text, scores, truths, own), abs=2e-5)


@settings(max_examples=100)
@given(
    boxes=st.lists(st.tuples(*[st.integers(-2, 40)] * 4), max_size=9),
    seed=st.integers(0, 99),
    share=st.sampled_from([0, 0.01, 0.5]),
)
def test_boxes_equal_loops_over_pixels(
    boxes: list[tuple[int, int, int, int]], seed: int, share: float
) -> None:
    """Small boxes at the upper left, where everything else is empty, so the loops are short."""
    truth = np.zeros((288, 288), np.float32)
    source = np.random.default_rng(seed)
    truth[:24, :24] = source.random((24, 24)) * (source.random((24, 24)) < share)
    text = "".join(f"[{','.join(map(str, box))}]" for box in boxes)
    names = [f"artifact_boundingbox_{part}" for part in ("iou", "avepixel", "union")]
    table = total_rewards(None, [text], names=names, artifact_map=[truth])
    scaled = [tuple(corner * 288 / 512 for corner in box) for box in boxes]
    expected = grounding(scaled, truth.tolist())
    assert [float(table.terms[name][0]) for name in names] == pytest.approx(expected, abs=1e-5)
