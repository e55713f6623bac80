import pytest
import torch
from seeded import seeded

from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.renderer import bounding_boxes, coverage, render_batch, visible
from tts_verifier.shapes.scene import sample_scenes
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES


def test_an_image_shows_the_requested_colour_where_its_box_says():
    scenes = sample_scenes([parse_caption("a red square")] * 8, seeded(0))
    cover = coverage(scenes)
    images = render_batch(scenes)
    assert images.shape == (8, 3, 128, 128)
    for i in range(8):
        slot = int(scenes.present[i].nonzero()[0])
        x1, y1, x2, y2 = bounding_boxes(cover)[i, slot].int().tolist()
        middle = images[i, :, (y1 + y2) // 2, (x1 + x2) // 2] * 255
        assert torch.allclose(middle, torch.tensor(COLOURS["red"], dtype=torch.float), atol=1)
        outside = images[i].clone()
        outside[:, y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = 1
        assert outside.min() > 0.7


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_the_same_area_at_every_tilt(shape):
    scenes = sample_scenes([parse_caption(f"a {shape}")] * 16, seeded(1))
    area = coverage(scenes).sum((1, 2, 3)) / scenes.radius[scenes.present] ** 2
    assert area.std() / area.mean() < 0.02


def test_a_hidden_part_is_not_visible():
    cover = torch.zeros(1, 2, 128, 128)
    cover[0, :, 10:20, 10:20] = 1
    assert visible(cover)[0, 0].sum() == 0
    assert visible(cover)[0, 1].sum() == 100
