import pytest
from seeded import seeded

from tts_verifier.shapes.flaws import render_flawed
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.scene import encode, sample_scenes


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_scenes_serve_their_specs(relation):
    specs = [parse_caption(f"a circle {relation} a star"), parse_caption("four blue rings")] * 20
    scenes = sample_scenes(specs, seeded(2))
    for i, spec in enumerate(specs):
        assert scenes.present[i].sum() == (2 if spec.relation else 4)
    flawless = render_flawed(specs, seeded(3), misalignment=0.0, artifact=0.0)
    assert all(reading.passed for reading in flawless.readings)
    assert (flawless.scores[:, 0] == 1).all()


def test_specs_become_tensors():
    asked = encode([parse_caption("two red stars")])
    assert asked.shape[0].tolist() == [3, 3, -1, -1, -1]
    assert asked.colour[0, :2].tolist() == [0, 0]
