import random

import pytest
import torch
from seeded import seeded

from tts_verifier.shapes.artifacts import ARTIFACT_KINDS, plant_artifacts
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.renderer import render_batch
from tts_verifier.shapes.scene import sample_scenes


@pytest.mark.parametrize("kind", range(len(ARTIFACT_KINDS)))
def test_an_artifact_is_marked_where_the_pixels_changed(kind):
    clean = render_batch(sample_scenes(random_specs(60, random.Random(2)), seeded(7)))
    planted = plant_artifacts(clean, seeded(8), share=1.0)
    rows = (planted.kind == kind).nonzero().flatten()
    assert len(rows) > 3
    for i in rows.tolist():
        changed = (planted.images[i] - clean[i]).abs().amax(0) > 0.08
        assert planted.map[i][changed].min() > 0
        x1, y1, x2, y2 = planted.box[i].int().tolist()
        assert changed.sum() == changed[y1:y2, x1:x2].sum() > 0
        assert 0 < planted.severity[i] <= 1


def test_no_artifact_leaves_the_image_alone():
    clean = render_batch(sample_scenes(random_specs(6, random.Random(3)), seeded(0)))
    planted = plant_artifacts(clean, seeded(0), share=0.0)
    assert torch.equal(planted.images, clean)
    assert planted.kind.tolist() == [-1] * 6
    assert planted.map.sum() == planted.severity.sum() == 0
