"""A recipe over real architectures with random weights: everything but good pictures."""

from pathlib import Path

import pandas as pd
from tiny_imagedoctor import example
from tiny_pipelines import sd3

from tts_verifier.recipe import load_recipe, run_recipe

RECIPE = """\
generator: {{name: diffusers, model: {generator}, steps: 2, batch_size: 3, call: {call}}}
verifier: {{name: imagedoctor, model: {verifier}, batch_size: 4, max_new_tokens: 4}}
judge: {{name: shapes-judge}}
strategy: {{name: best_of_n, n: 4}}
prompts: [a red circle, a blue square]
"""


def test_random_weights_run_to_the_end_with_reasons(tmp_path: Path) -> None:
    pipe = sd3(tmp_path)
    pipe.save_pretrained(tmp_path / "generator")
    example().make(tmp_path / "verifier")
    places = {"generator": tmp_path / "generator", "verifier": tmp_path / "verifier"}
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(**places, call="{max_sequence_length: 16}"))
    text = str(run_recipe(load_recipe(path), output=tmp_path / "run"))
    table = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    assert len(table) == 8
    assert (table.network_evaluations > 0).all()
    # Random weights write nonsense: no score, the reply and the reason are kept.
    assert table.error.str.startswith("the reply has no usable").all()
    assert table.objective.isna().all()
    assert not table.chosen.any()
    assert set(table.judge_passed) <= {0.0, 1.0}
    assert "No prompt has a usable image." in text
