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
from tts_verifier.shapes.flaws import SCORE_NAMES
from tts_verifier.training.miniature.verifier import figures
from tts_verifier.training.miniature.verifier.data import Samples
from tts_verifier.types import Detail, Heatmap, Heatmaps, Verdict

CASES = figures.renders(24, seed=0)


class Knowing(Verifier):
    """Knows the truth of a picture by its caption, as long as both belong together."""

    def __init__(self, cases: Sequence[figures.Case]) -> None:
        self.truth = {(c.picture.tobytes(), c.caption): c for c in cases}

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
    found = figures.summary(figures.measure(Knowing(CASES), CASES, name="renders"))
    perfect = ["plcc_semantic_alignment", "plcc_overall", "decided_right", "regions_pointed_at"]
    perfect += ["cc_misalignment", "cc_artifact", "replies_whole"]
    assert [found[name] for name in perfect] == pytest.approx([1.0] * 7)


@pytest.mark.parametrize("control", ["shuffled", "blank"])
def test_under_a_control_it_has_nothing_to_say(control: figures.Control) -> None:
    found = figures.summary(figures.measure(Knowing(CASES), CASES, name="r", control=control))
    assert found["replies_whole"] < 0.2
    assert found["regions_pointed_at"] < 0.2
    assert found["cc_misalignment"] < 0.2


def test_chance_for_a_shuffled_caption_is_the_true_map_of_the_other_caption() -> None:
    asked = ["a red circle", "a blue star"]
    cases = [
        replace(case, caption=caption, maps={"misalignment": case.maps["misalignment"]})
        for caption in asked
        for case in figures.sampled(
            Samples(np.stack([np.asarray(render("a green ring", seed=0))]), [caption]),
            artifacts=False,
        )
    ]
    assert figures.of_another_caption(cases) == pytest.approx(1.0)
    served = [replace(case, caption="a green ring") for case in cases]
    assert figures.of_another_caption(served[:1]) == 0.0


def test_unknown_controls_and_no_cases_are_errors() -> None:
    with pytest.raises(InputError, match=r"none, shuffled, blank, got 24 cases and 'upside down'"):
        figures.measure(Knowing(CASES), CASES, name="r", control="upside down")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got 0 cases"):
        figures.measure(Knowing(CASES), [], name="r")


def eight_each(asked: Sequence[str]) -> Samples:
    """Half of each caption's pictures serve it, the others show the next caption."""
    drawn = [(c, c if k % 2 else n) for c, n in zip(asked, [*asked[1:], asked[0]], strict=True)
             for k in range(4)]  # fmt: skip
    images = np.stack([np.asarray(render(shown, seed=i)) for i, (_, shown) in enumerate(drawn)])
    return Samples(images, [caption for caption, _ in drawn])


def test_samples_are_held_against_the_judge_within_each_caption() -> None:
    cases = figures.sampled(eight_each(captions(6, seed=5)), artifacts=False)
    assert {c.scores["semantic_alignment"] == 1.0 for c in cases} == {True, False}
    found = figures.summary(figures.measure(Knowing(cases), cases, name="samples"))
    assert found["auc_within_caption"] == 1.0
    assert found["captions_with_both"] == 6
    assert math.isnan(found["cc_artifact"])
    assert "plcc_overall" not in found


def test_artifacts_planted_into_samples_have_a_map() -> None:
    cases = figures.sampled(eight_each(captions(2, seed=5)), artifacts=True)
    found = figures.summary(figures.measure(Knowing(cases), cases, name="samples"))
    assert found["cc_artifact"] == pytest.approx(1.0)


def test_rows_are_one_parquet_table(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = figures.measure(Knowing(CASES), CASES[:3], name="renders")
    figures.write(rows, tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == 3
    assert table["said_overall"].to_pylist() == [r.said_overall for r in rows]
