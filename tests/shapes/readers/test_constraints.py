from tts_verifier import shapes
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.readers.constraints import compare, region_map


def test_a_region_map_is_one_inside_its_boxes():
    found = region_map([(10.0, 20.0, 30.0, 40.0)])
    assert found[20:40, 10:30].min() == 1
    assert found[50:].max() == 0
    assert region_map([]).max() == 0


def test_a_missing_related_object_marks_the_half_plane():
    things = compare(parse_caption("a circle"), []).things
    assert things == ()
    reading = shapes.oracle(shapes.render("a red square", 0), "a red circle left of a red square")
    assert not reading.passed
    square = reading.things[0]
    assert reading.boxes == ((0.0, 0.0, square.centre[0], 128.0),)
