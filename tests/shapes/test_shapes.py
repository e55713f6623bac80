import numpy as np

from tts_verifier import shapes


def test_the_public_helpers_agree_on_a_render():
    caption = "a purple cross above a yellow ring"
    image = shapes.render(caption, seed=1)
    assert image.size == (128, 128)
    assert shapes.judge(image, caption).passed
    assert shapes.oracle(np.asarray(image), caption).passed
    assert not shapes.oracle(image, "a purple cross below a yellow ring").passed
