import random

import numpy as np
import pytest
import torch

from tts_verifier import shapes
from tts_verifier.shapes.artifacts import KINDS, plant_artifacts
from tts_verifier.shapes.captions import random_specs
from tts_verifier.shapes.flaws import SCORES, plant
from tts_verifier.shapes.grammar import parse
from tts_verifier.shapes.readers.constraints import compare, region_map
from tts_verifier.shapes.renderer import boxes, coverage, render_batch, visible
from tts_verifier.shapes.scene import encode, sample_scenes
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_picture_shows_the_asked_colour_where_its_box_says():
    scenes = sample_scenes([parse("a red square")] * 8, generator())
    cover = coverage(scenes)
    images = render_batch(scenes)
    assert images.shape == (8, 3, 128, 128)
    for i in range(8):
        slot = int(scenes.present[i].nonzero()[0])
        x1, y1, x2, y2 = boxes(cover)[i, slot].int().tolist()
        middle = images[i, :, (y1 + y2) // 2, (x1 + x2) // 2] * 255
        assert torch.allclose(middle, torch.tensor(COLOURS["red"], dtype=torch.float), atol=1)
        outside = images[i].clone()
        outside[:, y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = 1
        assert outside.min() > 0.7


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_the_same_area_at_every_tilt(shape):
    scenes = sample_scenes([parse(f"a {shape}")] * 16, generator(1))
    area = coverage(scenes).sum((1, 2, 3)) / scenes.radius[scenes.present] ** 2
    assert area.std() / area.mean() < 0.02


def test_a_hidden_part_is_not_visible():
    cover = torch.zeros(1, 2, 128, 128)
    cover[0, :, 10:20, 10:20] = 1
    assert visible(cover)[0, 0].sum() == 0
    assert visible(cover)[0, 1].sum() == 100


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_scenes_serve_their_specs(relation):
    specs = [parse(f"a circle {relation} a star"), parse("four blue rings")] * 20
    scenes = sample_scenes(specs, generator(2))
    for i, spec in enumerate(specs):
        assert scenes.present[i].sum() == (2 if spec.relation else 4)
    flawless = plant(specs, generator(3), misalignment=0.0, artifact=0.0)
    assert all(reading.passed for reading in flawless.readings)
    assert (flawless.scores[:, 0] == 1).all()


def test_specs_become_tensors():
    asked = encode([parse("two red stars")])
    assert asked.shape[0].tolist() == [3, 3, -1, -1, -1]
    assert asked.colour[0, :2].tolist() == [0, 0]


def test_pictures_are_a_function_of_the_seed():
    specs = random_specs(12, random.Random(0))
    one, other = plant(specs, generator(5)), plant(specs, generator(5))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.scores, other.scores)


def test_planted_flaws_show_in_scores_and_maps():
    specs = random_specs(120, random.Random(1))
    flawed = plant(specs, generator(6), misalignment=1.0, artifact=1.0)
    alignment = flawed.scores[:, SCORES.index("semantic_alignment")]
    assert (alignment < 1).float().mean() > 0.9
    assert flawed.images.isfinite().all()
    assert flawed.images.min() >= 0
    assert flawed.images.max() <= 1
    assert ((flawed.scores >= 0) & (flawed.scores <= 1)).all()
    for i, reading in enumerate(flawed.readings):
        assert (flawed.misalignment[i].sum() > 0) == bool(reading.boxes)


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_an_artifact_is_marked_where_the_pixels_changed(kind):
    clean = render_batch(sample_scenes(random_specs(60, random.Random(2)), generator(7)))
    planted = plant_artifacts(clean, generator(8), share=1.0)
    rows = (planted.kind == kind).nonzero().flatten()
    assert len(rows) > 3
    for i in rows.tolist():
        changed = (planted.images[i] - clean[i]).abs().amax(0) > 0.08
        assert planted.map[i][changed].min() > 0
        x1, y1, x2, y2 = planted.box[i].int().tolist()
        assert changed.sum() == changed[y1:y2, x1:x2].sum() > 0
        assert 0 < planted.severity[i] <= 1


def test_no_artifact_leaves_the_picture_alone():
    clean = render_batch(sample_scenes(random_specs(6, random.Random(3)), generator()))
    planted = plant_artifacts(clean, generator(), share=0.0)
    assert torch.equal(planted.images, clean)
    assert planted.kind.tolist() == [-1] * 6
    assert planted.map.sum() == planted.severity.sum() == 0


def test_the_public_helpers_agree_on_a_render():
    caption = "a purple cross above a yellow ring"
    picture = shapes.render(caption, seed=1)
    assert picture.size == (128, 128)
    assert shapes.judge(picture, caption).passed
    assert shapes.oracle(np.asarray(picture), caption).passed
    assert not shapes.oracle(picture, "a purple cross below a yellow ring").passed


def test_a_region_map_is_one_inside_its_boxes():
    found = region_map([(10.0, 20.0, 30.0, 40.0)])
    assert found[20:40, 10:30].min() == 1
    assert found[50:].max() == 0
    assert region_map([]).max() == 0


def test_a_missing_related_object_marks_the_half_plane():
    things = compare(parse("a circle"), []).things
    assert things == ()
    reading = shapes.oracle(shapes.render("a red square", 0), "a red circle left of a red square")
    assert not reading.passed
    square = reading.things[0]
    assert reading.boxes == ((0.0, 0.0, square.centre[0], 128.0),)
