import numpy as np

from tts_verifier import shapes


def test_the_judge_reads_a_thing_of_two_colours_as_one():
    red, orange = (np.array(shapes.render(f"a {c} cross", seed=3)) for c in ("red", "orange"))
    middle = int(np.nonzero(red[..., 2] < 128)[1].mean())
    mixed = np.concatenate([red[:, :middle], orange[:, middle:]], 1)
    assert shapes.judge(mixed, "a cross").passed
    assert shapes.judge(mixed, "a cross").things[0].shape == "cross"


def test_the_judge_measures_what_nothing_explains():
    clean = shapes.render("a red circle", 0)
    spoiled = np.asarray(clean).copy()
    spoiled[100:120, 5:25] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    reading = shapes.judge(spoiled, "a red circle")
    assert shapes.judge(clean, "a red circle").artifact < 0.01
    assert reading.artifact > 0.015
