"""Every kind of image that a user may pass in, usable or not."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.images import as_image, as_images

RED = (255, 0, 0)


def pixel(image: Image.Image) -> tuple[int, int, int]:
    return image.getpixel((0, 0))


def test_every_mode_of_pillow_becomes_rgb() -> None:
    for mode in ("1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBa"):
        image = as_image(Image.new(mode, (3, 2)))
        assert (image.mode, image.size) == ("RGB", (3, 2)), mode


def test_cmyk_red_is_red() -> None:
    assert pixel(as_image(Image.new("CMYK", (2, 2), (0, 255, 255, 0)))) == RED


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 65535, 257 * 77]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    grey = np.asarray(as_image(tmp_path / "deep.png"))[0, :, 0]
    assert grey.tolist() == [0, 255, 77]


def test_integers_beyond_sixteen_bits_are_refused() -> None:
    with pytest.raises(InputError, match=r"16 bits.*\[0, 70000\]"):
        as_image(Image.fromarray(np.array([[0, 70000]], np.int32)))


def test_transparency_is_laid_over_white() -> None:
    half_red = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert pixel(as_image(half_red)) == (255, 127, 127)
    assert pixel(as_image(Image.new("LA", (2, 2), (0, 0)))) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_is_laid_over_white() -> None:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([10, 20, 30])
    image.info["transparency"] = 0
    assert pixel(as_image(image)) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert as_image(tmp_path / "turned.jpg").size == (2, 4)


@pytest.mark.parametrize(
    ("orientation", "rows"),
    [
        (1, ["abc", "def"]),
        (2, ["cba", "fed"]),
        (3, ["fed", "cba"]),
        (4, ["def", "abc"]),
        (5, ["ad", "be", "cf"]),
        (6, ["da", "eb", "fc"]),
        (7, ["fc", "eb", "da"]),
        (8, ["cf", "be", "ad"]),
        (9, ["abc", "def"]),
    ],
)
def test_each_orientation_turns_each_mode(orientation: int, rows: list[str]) -> None:
    grey = Image.fromarray(np.array([list(b"abc"), list(b"def")], np.uint8))
    expected = [[ord(letter) for letter in row] for row in rows]
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for image in (grey, grey.convert("RGB"), grey.convert("RGBA"), grey.convert("P"), deep):
        image.getexif()[0x0112] = orientation
        turned = as_image(image)
        assert np.asarray(turned)[..., 0].tolist() == expected, image.mode
        assert not turned.getexif()
        assert image.size == (3, 2)
        assert dict(image.getexif()) == {0x0112: orientation}


def test_metadata_stay_behind() -> None:
    image = Image.new("RGB", (2, 2), RED)
    image.info = {"icc_profile": b"profile", "dpi": (72, 72)}
    assert as_image(image).info == {}
    assert image.info == {"icc_profile": b"profile", "dpi": (72, 72)}


def test_a_picture_shares_no_memory_with_what_it_is_made_of() -> None:
    red = Image.new("RGB", (2, 2), RED)
    as_image(red).putpixel((0, 0), (0, 0, 0))
    assert pixel(red) == RED
    for shape in ((2, 2), (2, 2, 1), (2, 2, 3), (2, 2, 4)):
        array = np.full(shape, 255, np.uint8)
        floats, tensor = np.ones(shape, np.float32), torch.ones(shape[2:] + shape[:2])
        forms = (array, floats, tensor)
        converted = [as_image(form) for form in (*forms, Image.fromarray(array.squeeze()))]
        for form in forms:
            form *= 0
        assert [pixel(image) for image in converted] == [(255, 255, 255)] * 4


def test_one_pixel_is_a_picture() -> None:
    assert as_image(Image.new("RGB", (1, 1), RED)).size == (1, 1)
    assert as_image(np.zeros((1, 1), np.uint8)).size == (1, 1)


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="0x5"):
        as_image(Image.new("RGB", (0, 5)))
    with pytest.raises(InputError, match="needs pixels"):
        as_image(np.zeros((0, 3, 3), np.uint8))


def test_a_file_may_be_deleted_after_conversion(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (2, 2), RED).save(path)
    image = as_image(str(path))
    path.unlink()
    assert pixel(image) == RED


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"must be readable.*bad\.png"):
        as_image(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=rf"must be readable.*{name}"):
            as_image(tmp_path / name)


@pytest.mark.parametrize("limit", [None, 100])
def test_a_huge_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    # Both Pillow's own limit (an error at twice its value) and ours, which is stricter.
    if limit:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    else:
        monkeypatch.setattr("tts_verifier.images.convert.MAX_PIXELS", 100)
    Image.new("RGB", (20, 20)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"at most .* pixels, .*bomb\.png"):
        as_image(tmp_path / "bomb.png")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no image file .*gone\.png"):
        as_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="must be readable"):
        as_image(tmp_path)


def test_arrays_and_tensors_agree() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    expected = array.tolist()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    given_forms = (array, array / 255, (array / 255).astype(np.float32), tensor, tensor / 255)
    for form in given_forms:
        assert np.asarray(as_image(form)).tolist() == expected


def test_grey_arrays_are_pictures() -> None:
    assert pixel(as_image(np.full((2, 3), 0.5))) == (128, 128, 128)
    assert as_image(np.zeros((2, 3, 1), np.uint8)).size == (3, 2)
    assert as_image(torch.zeros(1, 2, 3, dtype=torch.bfloat16)).size == (3, 2)
    assert as_image(torch.zeros(2, 3, requires_grad=True)).size == (3, 2)


def test_rounding_beyond_the_range_is_clipped() -> None:
    array = np.full((2, 2, 3), 1.0005)
    array[0, 0, 1:] = -0.0005
    assert pixel(as_image(array)) == RED
    kept = array.astype(np.float32)
    as_image(kept)
    assert kept[0, 0].tolist() == [np.float32(1.0005), np.float32(-0.0005), np.float32(-0.0005)]


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, np.nan, np.inf, -np.inf])
def test_floats_out_of_range_are_refused(value: float) -> None:
    array = np.zeros((2, 2, 3), np.float32)
    array[1, 1, 1] = value
    with pytest.raises(InputError, match=r"stay in \[0, 1\], without NaN"):
        as_image(array)
    with pytest.raises(InputError, match=r"stay in \[0, 1\], without NaN"):
        as_image(torch.from_numpy(array).permute(2, 0, 1))


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.bool_, np.complex64, object])
def test_other_types_of_number_are_refused(dtype: type) -> None:
    with pytest.raises(InputError, match="must be uint8"):
        as_image(np.zeros((2, 2, 3), dtype))


@pytest.mark.parametrize("shape", [(), (3,), (3, 5, 7), (2, 2, 2), (1, 1, 1, 1, 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="must have the shape"):
        as_image(np.zeros(shape, np.uint8))


def test_a_tensor_with_channels_last_gets_a_hint() -> None:
    with pytest.raises(InputError, match=r"permute\(2, 0, 1\)"):
        as_image(torch.zeros(8, 8, 3))


def test_a_batch_is_a_list_of_images_but_not_an_image() -> None:
    for batch in (np.zeros((1, 4, 5, 3), np.uint8), torch.zeros(1, 3, 4, 5)):
        with pytest.raises(InputError, match=r"batch\[0\]"):
            as_image(batch)
        assert [image.size for image in as_images(batch)] == [(5, 4)]


@pytest.mark.parametrize(
    "single", [Image.new("RGB", (2, 2)), "red.png", Path("red.png"), np.zeros((2, 2, 3))]
)
def test_one_image_is_not_a_list_of_images(single: object) -> None:
    with pytest.raises(InputError, match=r"Put it into a list: \[image\]"):
        as_images(single)


def test_a_bad_image_of_many_is_named_by_its_place() -> None:
    with pytest.raises(InputError, match="Image 1: An image must be a PIL image"):
        as_images([Image.new("RGB", (2, 2)), 5])
    with pytest.raises(InputError, match="got a int"):
        as_images(5)


def test_no_image_is_an_empty_list() -> None:
    assert as_images([]) == []


def test_a_picture_needs_no_torch() -> None:
    code = (
        "import sys, numpy; from tts_verifier.images import as_image;"
        "as_image(numpy.zeros((2, 2))); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


ANY_ARRAY = hnp.arrays(
    st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), st.just(np.dtype(bool))),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
)


@given(ANY_ARRAY)
def test_any_array_is_a_picture_or_a_clear_error(array: np.ndarray) -> None:
    try:
        image = as_image(array)
    except InputError:
        return
    assert (image.mode, image.height, image.width) == ("RGB", *array.shape[:2])


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"]))
def test_any_bytes_are_a_picture_or_a_clear_error(
    tmp_path: Path, content: bytes, magic: bytes
) -> None:
    (tmp_path / "any").write_bytes(magic + content)
    with contextlib.suppress(InputError):
        assert as_image(tmp_path / "any").mode == "RGB"
