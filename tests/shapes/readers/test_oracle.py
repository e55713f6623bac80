import numpy as np

from tts_verifier import shapes


def test_a_blob_is_a_thing_of_no_known_shape():
    picture = np.full((128, 128, 3), 235, np.uint8)
    picture[30:36, 20:100] = (222, 40, 40)
    reading = shapes.oracle(picture, "a red square")
    assert [t.shape for t in reading.things] == [None]
    assert reading.boxes == ((20.0, 30.0, 100.0, 36.0),)
    assert "red thing of no known shape" in reading.describe()


def test_a_bitten_thing_keeps_its_shape_and_its_fragment():
    picture = np.asarray(shapes.render("a blue square", 3)).copy()
    rows, columns = np.nonzero(picture[..., 0] < 100)
    middle = int(columns.mean()) + 8
    picture[rows.min() : rows.min() + 14, middle - 3 : middle + 4] = picture[0, 0]
    picture[: rows.min() + 8, middle:] = picture[0, 0]
    assert shapes.oracle(picture, "a blue square").passed


def test_specks_are_not_things():
    picture = np.asarray(shapes.render("a blue square", 3)).copy()
    for corner in ((2, 2), (120, 2), (2, 120)):
        picture[corner[0] : corner[0] + 6, corner[1] : corner[1] + 6] = (222, 40, 40)
    assert shapes.oracle(picture, "a blue square").passed


def test_touching_equal_things_are_told_apart():
    at = np.mgrid[:128, :128] + 0.5
    picture = np.full((128, 128, 3), 235, np.uint8)
    for x in (45, 82):
        picture[np.hypot(at[0] - 64, at[1] - x) < 19.2] = (40, 75, 220)
    assert shapes.oracle(picture, "two blue circles").passed
