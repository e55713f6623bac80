from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tts_verifier.errors import InputError
from tts_verifier.images import ImageLike
from tts_verifier.interfaces import Verifier
from tts_verifier.shapes import captions, render
from tts_verifier.training.miniature.verifier import benchmark
from tts_verifier.training.miniature.verifier.data import GeneratorSamples
from tts_verifier.types import Detail, Heatmap, Heatmaps, Verdict
from tts_verifier.types.score_names import SCORE_NAMES

CASES = benchmark.rendered_cases(24, seed=0)


class Knowing(Verifier):
    """Knows the truth of an image by its caption, as long as both belong together."""

    def __init__(self, cases: Sequence[benchmark.Case]) -> None:
        self.truth = {(c.image.tobytes(), c.caption): c for c in cases}

    def verify(
        self, images: Sequence[ImageLike], prompts: Sequence[str], *, detail: Detail = "diagnose"
    ) -> list[Verdict]:
        """Tells the truth, or nothing."""
        return [self._tell(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _tell(self, image: ImageLike, prompt: str) -> Verdict:
        case = self.truth.get((image.tobytes(), prompt))  # type: ignore[union-attr]
        if case is None:
            return Verdict(dict.fromkeys(SCORE_NAMES, math.nan))
        maps = {name: Heatmap(grid, (128, 128)) for name, grid in case.maps.items()}
        return Verdict(case.scores, Heatmaps(maps), tuple(case.boxes or ()))


def test_a_verifier_that_knows_the_truth_is_perfect() -> None:
    figures = benchmark.benchmark_figures(benchmark.measure(Knowing(CASES), CASES, name="renders"))
    perfect = ["plcc_semantic_alignment", "plcc_overall", "decided_right", "regions_pointed_at"]
    perfect += ["cc_misalignment", "cc_artifact", "replies_whole"]
    assert [figures[name] for name in perfect] == pytest.approx([1.0] * 7)


@pytest.mark.parametrize("control", ["shuffled", "blank"])
def test_under_a_control_it_has_nothing_to_say(control: benchmark.ControlCondition) -> None:
    figures = benchmark.benchmark_figures(
        benchmark.measure(Knowing(CASES), CASES, name="r", control=control)
    )
    assert figures["replies_whole"] < 0.2
    assert figures["regions_pointed_at"] < 0.2
    assert figures["cc_misalignment"] < 0.2


def test_chance_for_a_shuffled_caption_is_the_true_map_of_the_other_caption() -> None:
    prompts = ["a red circle", "a blue star"]
    cases = [
        replace(case, caption=caption, maps={"misalignment": case.maps["misalignment"]})
        for caption in prompts
        for case in benchmark.sampled_cases(
            GeneratorSamples(np.stack([np.asarray(render("a green ring", seed=0))]), [caption]),
            artifacts=False,
        )
    ]
    assert benchmark.chance_correlation(cases) == pytest.approx(1.0)
    served = [replace(case, caption="a green ring") for case in cases]
    assert benchmark.chance_correlation(served[:1]) == 0.0


def test_unknown_controls_and_no_cases_are_errors() -> None:
    with pytest.raises(InputError, match=r"none, shuffled, blank, got 24 cases and 'upside down'"):
        benchmark.measure(Knowing(CASES), CASES, name="r", control="upside down")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got 0 cases"):
        benchmark.measure(Knowing(CASES), [], name="r")


def four_each(prompts: Sequence[str]) -> GeneratorSamples:
    """Half of each prompt's images satisfy it, the others show the next prompt."""
    following = [*prompts[1:], prompts[0]]
    pairs = [
        (prompt, prompt if k % 2 else other)
        for prompt, other in zip(prompts, following, strict=True)
        for k in range(4)
    ]
    images = np.stack([np.asarray(render(shown, seed=i)) for i, (_, shown) in enumerate(pairs)])
    return GeneratorSamples(images, [caption for caption, _ in pairs])


def test_samples_are_held_against_the_judge_within_each_caption() -> None:
    cases = benchmark.sampled_cases(four_each(captions(6, seed=5)), artifacts=False)
    assert {c.scores["semantic_alignment"] == 1.0 for c in cases} == {True, False}
    figures = benchmark.benchmark_figures(benchmark.measure(Knowing(cases), cases, name="samples"))
    assert figures["auc_within_caption"] == 1.0
    assert figures["captions_with_both"] == 6
    assert math.isnan(figures["cc_artifact"])
    assert "plcc_overall" not in figures


def test_artifacts_planted_into_samples_have_a_map() -> None:
    cases = benchmark.sampled_cases(four_each(captions(2, seed=5)), artifacts=True)
    figures = benchmark.benchmark_figures(benchmark.measure(Knowing(cases), cases, name="samples"))
    assert figures["cc_artifact"] == pytest.approx(1.0)


def test_rows_are_one_parquet_table(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = benchmark.measure(Knowing(CASES), CASES[:3], name="renders")
    benchmark.write_rows(rows, tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == 3
    assert table["said_overall"].to_pylist() == [r.said_overall for r in rows]
