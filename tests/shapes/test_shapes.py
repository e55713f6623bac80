import numpy as np

from tts_verifier import shapes


def test_the_public_helpers_agree_on_a_render():
    caption = "a purple cross above a yellow ring"
    picture = shapes.render(caption, seed=1)
    assert picture.size == (128, 128)
    assert shapes.judge(picture, caption).passed
    assert shapes.oracle(np.asarray(picture), caption).passed
    assert not shapes.oracle(picture, "a purple cross below a yellow ring").passed
