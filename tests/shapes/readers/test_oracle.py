import numpy as np

from tts_verifier import shapes


def test_a_blob_is_a_thing_of_no_known_shape():
    image = np.full((128, 128, 3), 235, np.uint8)
    image[30:36, 20:100] = (222, 40, 40)
    reading = shapes.oracle(image, "a red square")
    assert [t.shape for t in reading.things] == [None]
    assert reading.boxes == ((20.0, 30.0, 100.0, 36.0),)
    assert "red thing of no known shape" in reading.describe()


def test_a_bitten_thing_keeps_its_shape_and_its_fragment():
    image = np.asarray(shapes.render("a blue square", 3)).copy()
    rows, columns = np.nonzero(image[..., 0] < 100)
    middle = int(columns.mean()) + 8
    image[rows.min() : rows.min() + 14, middle - 3 : middle + 4] = image[0, 0]
    image[: rows.min() + 8, middle:] = image[0, 0]
    assert shapes.oracle(image, "a blue square").passed


def test_specks_are_not_things():
    image = np.asarray(shapes.render("a blue square", 3)).copy()
    for corner in ((2, 2), (120, 2), (2, 120)):
        image[corner[0] : corner[0] + 6, corner[1] : corner[1] + 6] = (222, 40, 40)
    assert shapes.oracle(image, "a blue square").passed


def test_touching_equal_things_are_told_apart():
    at = np.mgrid[:128, :128] + 0.5
    image = np.full((128, 128, 3), 235, np.uint8)
    for x in (45, 82):
        image[np.hypot(at[0] - 64, at[1] - x) < 19.2] = (40, 75, 220)
    assert shapes.oracle(image, "two blue circles").passed
