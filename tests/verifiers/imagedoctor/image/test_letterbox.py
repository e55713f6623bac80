from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as stock_smart_resize,
)

from tts_verifier.errors import InputError
from tts_verifier.types import Heatmap
from tts_verifier.verifiers.imagedoctor.image.letterbox import (
    BOX_FRAME,
    FrameMapping,
    fit_to_square,
    smart_resize,
)

SIDES = st.integers(1, 300)
FITS = st.sampled_from(["squash", "pad"])


@given(SIDES, SIDES, FITS, st.data())
@settings(deadline=None)
def test_boxes_go_to_the_frame_and_back(w: int, h: int, fit: str, data: st.DataObject) -> None:
    mapping = FrameMapping.of((w, h), 112, fit=fit)
    x = sorted(data.draw(st.lists(st.floats(0, w), min_size=2, max_size=2)))
    y = sorted(data.draw(st.lists(st.floats(0, h), min_size=2, max_size=2)))
    if x[1] - x[0] < 1e-3 or y[1] - y[0] < 1e-3:
        return
    box = (x[0], y[0], x[1], y[1])
    frame = mapping.to_frame(box)
    assert all(-1e-9 <= v <= BOX_FRAME + 1e-9 for v in frame)
    assert mapping.to_image(frame) == pytest.approx(box, abs=1e-9 * max(w, h) * 100)


@given(SIDES, SIDES, FITS)
@settings(deadline=None)
def test_the_frame_is_square_and_the_whole_frame_is_the_whole_image(
    w: int, h: int, fit: str
) -> None:
    frame = fit_to_square(Image.new("RGB", (w, h)), 64, fit=fit)
    mapping = FrameMapping.of((w, h), 64, fit=fit)
    assert frame.size == (64, 64)
    assert mapping.to_image((0, 0, BOX_FRAME, BOX_FRAME)) == (0, 0, w, h)
    left, top, right, bottom = mapping.box
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    assert (mapping.box == (0, 0, 1, 1)) or fit == "pad"


def test_a_box_beside_the_letterboxed_image_is_no_box() -> None:
    mapping = FrameMapping.of((200, 100), 112, fit="pad")
    assert mapping.to_image((0, 0, 512, 100)) is None
    assert mapping.to_image((0, 0, 512, 256)) == pytest.approx((0, 0, 200, 50))


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("size", [(96, 96), (160, 64), (37, 111)])
def test_a_heatmap_comes_back_onto_the_image_where_the_flaw_is(
    fit: str, size: tuple[int, int]
) -> None:
    w, h = size
    image = Image.new("RGB", size)
    flaw = (w // 2, h // 2, w - w // 8, h - h // 8)
    image.paste((255, 255, 255), flaw)
    frame = fit_to_square(image, 288, fit=fit)
    mapping = FrameMapping.of(size, 288, fit=fit)
    outside = 1.0 if fit == "pad" else 0.0
    grid = np.asarray(frame, dtype=np.float32)[..., 0] / 255
    x1, y1, x2, y2 = (round(v * 288) for v in mapping.box)
    covered = np.full_like(grid, outside)
    covered[y1:y2, x1:x2] = grid[y1:y2, x1:x2]
    back = Heatmap(covered, size, mapping.box).on_image()
    assert back.shape == (h, w)
    truth = np.asarray(image, dtype=np.float32)[..., 0] / 255
    assert np.abs(back - truth).mean() < 0.05
    assert back[flaw[1] + h // 8, flaw[0] + w // 8] > 0.95
    assert back[h // 8, w // 8] < 0.05


def test_an_unknown_fit_is_an_error() -> None:
    with pytest.raises(InputError, match=r"fit must be one of squash, pad, got 'crop'"):
        fit_to_square(Image.new("RGB", (8, 8)), 64, fit="crop")  # type: ignore[arg-type]


@given(st.integers(28, 2000), st.integers(28, 2000))
def test_smart_resize_is_that_of_transformers(h: int, w: int) -> None:
    low, high = 56 * 56, 28 * 28 * 1280
    assert smart_resize(h, w, factor=28, low=low, high=high) == stock_smart_resize(
        h, w, 28, low, high
    )
