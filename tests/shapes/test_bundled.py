"""The models that ship: what the README's main command runs, on fewer prompts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tts_verifier import Verifier, shapes
from tts_verifier.generators.diffusers.loading import BUNDLED_PIPELINE
from tts_verifier.recipe import load_recipe, run_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "bestofn.yaml"
MIB = 2**20


@pytest.fixture(scope="module")
def verifier():
    return Verifier.from_pretrained("shapes")


@pytest.mark.parametrize("name", ["generator", "verifier"])
def test_weights_are_small_enough_to_travel(name):
    sizes = [
        path.stat().st_size
        for path in (BUNDLED_PIPELINE.parent / name).rglob("*")
        if path.is_file()
    ]
    assert max(sizes) <= 12 * MIB
    assert sum(sizes) <= 24 * MIB


def test_the_main_command_draws_judges_and_chooses(tmp_path):
    settings = ["prompts=[a red circle, three blue stars]", "strategy.n=2"]
    said = str(run_recipe(load_recipe(RECIPE, settings), output=tmp_path / "run"))
    table = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    assert len(table) == 4
    assert table.error.isna().all()
    assert table.semantic_alignment.between(0, 1).all()
    assert table.chosen.sum() == 2
    assert table[table.prompt == "a red circle"].judge_passed.mean() >= 0.5
    assert (table.network_evaluations == 40).all()
    assert "best possible" in said
    assert (tmp_path / "run" / "chosen.png").exists()


def test_stock_diffusers_loads_the_generator_alone():
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(
        BUNDLED_PIPELINE, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    image = pipe("a red circle", num_inference_steps=20, guidance_scale=4.0, generator=seed)
    assert image.images[0].size == (128, 128)
    assert shapes.oracle(image.images[0], "a red circle").passed


def test_the_verifier_sees_what_is_wrong_and_where(verifier):
    rendered = shapes.render("a red circle left of a blue square", seed=1)
    captions = ["a red circle left of a blue square", "a red circle left of a green square"]
    right, wrong = verifier.verify([rendered] * 2, captions)
    assert right.scores["semantic_alignment"] > 0.95
    assert wrong.scores["semantic_alignment"] < 0.9
    box = next(b for b in shapes.oracle(rendered, captions[1]).boxes)
    found = wrong.heatmaps["misalignment"]
    x, y = (int(v) for v in ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    assert found[y, x] > 0.5
    assert found.mean() < 0.2
    assert right.heatmaps["misalignment"].max() < 0.5
    assert any(abs((b[0] + b[2]) / 2 - x) < 12 for b in wrong.boxes)


def test_the_answer_alone_is_given_by_the_same_weights(verifier):
    rendered = shapes.render("three green stars", seed=2)
    captions = ["three green stars", "two red rings"]
    right, wrong = verifier.verify([rendered] * 2, captions, detail="score")
    assert right.scores["semantic_alignment"] > wrong.scores["semantic_alignment"] + 0.1
    assert np.isfinite([*right.scores.values(), *wrong.scores.values()]).all()
