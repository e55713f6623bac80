"""A repainted part is pasted into its parent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.generators.paste import paste
from tts_verifier.types import Mask


@given(
    mask=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)),
    feather=st.integers(0, 9),
)
@settings(deadline=None, max_examples=30)
def test_outside_the_mask_the_parent_stays_exactly(mask: np.ndarray, feather: int) -> None:
    random = np.random.default_rng(0)
    old, new = random.integers(0, 256, (2, *mask.shape, 3), np.uint8)
    pasted = paste(Image.fromarray(old), Image.fromarray(new), Mask.of(mask), feather)
    got = np.asarray(pasted)
    assert (got[~mask] == old[~mask]).all()
    if feather == 0 or mask.all():
        assert (got[mask] == new[mask]).all()


def test_a_feather_passes_from_one_into_the_other() -> None:
    mask = np.zeros((1, 8), np.bool_)
    mask[:, 3:] = True
    black, white = Image.new("RGB", (8, 1)), Image.new("RGB", (8, 1), "white")
    row = np.asarray(paste(black, white, Mask.of(mask), 2))[0, :, 0]
    assert row.tolist() == [0, 0, 0, 85, 170, 255, 255, 255]


def test_pasting_needs_one_size_and_a_feather_that_is_not_negative() -> None:
    image, mask = Image.new("RGB", (4, 4)), Mask.of(np.ones((4, 4), np.bool_))
    with pytest.raises(InputError, match="must have one size"):
        paste(image, Image.new("RGB", (5, 4)), mask)
    with pytest.raises(InputError, match="feather must not be negative, got -1"):
        paste(image, image, mask, -1)
