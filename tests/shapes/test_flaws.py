import random

import torch
from seeded import seeded

from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import render_flawed
from tts_verifier.types.score_names import SCORE_NAMES


def test_images_are_a_function_of_the_seed():
    specs = random_specs(12, random.Random(0))
    one, other = render_flawed(specs, seeded(5)), render_flawed(specs, seeded(5))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.scores, other.scores)


def test_planted_flaws_show_in_scores_and_maps():
    specs = random_specs(120, random.Random(1))
    flawed = render_flawed(specs, seeded(6), misalignment=1.0, artifact=1.0)
    alignment = flawed.scores[:, SCORE_NAMES.index("semantic_alignment")]
    assert (alignment < 1).float().mean() > 0.9
    assert flawed.images.isfinite().all()
    assert flawed.images.min() >= 0
    assert flawed.images.max() <= 1
    assert ((flawed.scores >= 0) & (flawed.scores <= 1)).all()
    for i, reading in enumerate(flawed.readings):
        assert (flawed.misalignment[i].sum() > 0) == bool(reading.boxes)
