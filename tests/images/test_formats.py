"""Which files are opened, and that whatever a file holds, it is a picture or a clear error."""

import io
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, features

from tts_verifier.errors import InputError
from tts_verifier.images import FORMATS, SUFFIXES, as_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{ } loop\nshowpage\n%%EOF\n"


def encoded(name: str, colour: tuple[int, int, int] = (200, 30, 30), side: int = 24) -> bytes:
    noise = np.random.default_rng(0).integers(0, 40, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise + np.array(colour, np.uint8)).save(buffer, name)
    return buffer.getvalue()


READABLE = [name for name in FORMATS if name != "AVIF" or features.check("avif")]
FILES = {name: encoded(name) for name in READABLE}


@pytest.fixture(autouse=True)
def _no_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    for name in ("Popen", "check_call", "run"):
        monkeypatch.setattr(subprocess, name, refuse)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)


@pytest.mark.parametrize("name", READABLE)
def test_every_format_is_read_whatever_the_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / "picture.eps").write_bytes(FILES[name])
    red, green, _ = np.asarray(as_image(tmp_path / "picture.eps"), float).mean((0, 1))
    assert red > green + 100


def test_suffixes_are_those_of_the_formats() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"} <= SUFFIXES
    assert not {".eps", ".ps", ".pdf", ".hdf", ".h5", ".mpg", ".psd", ".txt", ""} & SUFFIXES


@pytest.mark.parametrize("suffix", ["png", "jpg", "eps", "webp", "tif", "psd", "icns", ""])
def test_postscript_is_never_interpreted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(EPS)
    with pytest.raises(InputError, match=r"its content is none of PNG, JPEG"):
        as_image(path)
    # A DOS header before it, as old drawing programs write.
    path.write_bytes(struct.pack("<4s7I", b"\xc5\xd0\xd3\xc6", 32, len(EPS), 0, 0, 0, 0, 0) + EPS)
    with pytest.raises(InputError, match="must be readable"):
        as_image(path)


def test_an_open_picture_of_another_format_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_bytes(EPS)
    with (
        Image.open(tmp_path / "a.eps") as image,
        pytest.raises(InputError, match=r"format EPS are not read.*call image\.load\(\) first"),
    ):
        as_image(image)
    with Image.open(io.BytesIO(encoded("TGA"))) as image:
        with pytest.raises(InputError, match="format TGA are not read"):
            as_image(image)
        image.load()
        assert as_image(image).size == (24, 24)
    with Image.open(io.BytesIO(FILES["PNG"])) as image:
        assert as_image(image).size == (24, 24)


@pytest.mark.parametrize("name", ["ICNS", "PCX", "TGA", "SGI", "DDS", "SPIDER"])
def test_other_formats_of_pillow_are_refused(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    Image.new("F" if name == "SPIDER" else "RGB", (32, 32)).save(buffer, name)
    (tmp_path / "other.png").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="its content is none of PNG"):
        as_image(tmp_path / "other.png")


def test_pipes_devices_sockets_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        for name, kind in (
            (tmp_path / "pipe.png", "a named pipe"),
            (tmp_path / "link.png", "a named pipe"),
            (tmp_path / "folder.png", "a folder"),
            (tmp_path / "s.png", "a socket"),
            (Path("/dev/zero"), "a device"),
        ):
            with pytest.raises(InputError, match=f"a regular file is needed, this is {kind}"):
                as_image(name)


def test_names_that_are_no_unicode_or_no_names_are_named(tmp_path: Path) -> None:
    path = os.fsdecode(bytes(tmp_path) + b"/\xff.png")
    with pytest.raises(InputError, match=r"There is no image file .*\\xff\.png"):
        as_image(path)
    Path(path).write_bytes(FILES["PNG"])
    assert as_image(path).size == (24, 24)
    Path(path).write_bytes(b"no")
    with pytest.raises(InputError, match=r"\\xff\.png is not"):
        as_image(path)
    with pytest.raises(InputError, match="There is no image file"):
        as_image("a\0b.png")


def test_two_hundred_megapixels_are_refused(tmp_path: Path) -> None:
    for name, width in (("a.png", 20_000), ("b.png", 10_000)):
        Image.new("1", (width, 10_000)).save(tmp_path / name)
        with pytest.raises(InputError, match=r"at most 89,000,000 pixels"):
            as_image(tmp_path / name)


@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError, SyntaxError, MemoryError, OverflowError, ZeroDivisionError, KeyError),
        *(struct.error, AttributeError, TypeError, AssertionError, EOFError, OSError),
    ],
)
def test_whatever_a_decoder_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    (tmp_path / "a.png").write_bytes(FILES["PNG"])

    def fail(*arguments: Any) -> None:
        raise error("odd")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(InputError, match=r"must be readable, .*a\.png is not.*odd"):
        as_image(tmp_path / "a.png")
    with (
        Image.open(tmp_path / "a.png") as image,
        pytest.raises(InputError, match=r"must be readable, this one is not.*odd"),
    ):
        as_image(image)


@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_any_damage_is_a_picture_or_a_clear_error(
    tmp_path: Path, name: str, changes: list[tuple[float, int]], kept: float
) -> None:
    content = bytearray(FILES[name])
    for place, value in changes:
        # More often near the start, where the structure is.
        content[int(place**3 * (len(content) - 1))] = value
    if kept < 0.3:
        del content[int(kept / 0.3 * len(content)) :]
    (tmp_path / "any").write_bytes(content)
    try:
        assert as_image(tmp_path / "any").mode == "RGB"
    except InputError as error:
        assert "any" in str(error)  # noqa: PT017


# -- modes -----------------------------------------------------------------------------------


def grey(image: Image.Image) -> list[int]:
    return np.asarray(as_image(image))[0, :, 0].tolist()


def test_greys_of_thirty_two_bits_say_by_their_values_what_they_mean() -> None:
    assert grey(Image.fromarray(np.array([[0, 100, 255]], np.int32))) == [0, 100, 255]
    assert grey(Image.fromarray(np.array([[0, 257 * 100, 65535]], np.int32))) == [0, 100, 255]
    with pytest.raises(InputError, match=r"must stay in \[0, 65535\]"):
        as_image(Image.fromarray(np.array([[-1]], np.int32)))


def test_greys_of_sixteen_bits_stay_dark(tmp_path: Path) -> None:
    dark = Image.fromarray(np.array([[0, 100, 255]], np.uint16))
    assert grey(dark) == [0, 0, 1]
    for name in ("dark.png", "dark.tif", "dark.pgm"):
        dark.save(tmp_path / name)
        assert grey(tmp_path / name) == [0, 0, 1], name


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_both_byte_orders_are_read(order: str) -> None:
    mode = "I;16" if order == "<u2" else "I;16B"
    values = np.array([[0, 257 * 100, 65535]], order)
    assert grey(Image.frombytes(mode, (3, 1), values.tobytes())) == [0, 100, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"])
def test_white_stays_white_in_every_mode(mode: str) -> None:
    white = Image.new("RGBA", (2, 2), "white")
    steps = {"PA": ["P", "PA"], "La": ["LA", "La"]}.get(mode, [mode])
    for step in steps:
        white = white.convert(step)
    assert as_image(white).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_colours_stay_in_every_mode(mode: str) -> None:
    image = Image.new("RGB", (2, 2), (200, 40, 40)).convert(mode)
    assert np.allclose(as_image(image).getpixel((0, 0)), (200, 40, 40), atol=3)


def test_what_has_no_meaning_as_a_colour_is_refused() -> None:
    with pytest.raises(InputError, match="mode LAB is not read"):
        as_image(Image.new("LAB", (2, 2)))
    with pytest.raises(InputError, match=r"stay in \[0, 1\]"):
        as_image(Image.fromarray(np.array([[0, 255]], np.float32)))


def test_tensors_without_plain_numbers_are_refused() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(3, 2, 2, device="meta"), torch.zeros(2, 2).to_sparse()):
        with pytest.raises(InputError, match="must have plain numbers"):
            as_image(tensor)
    for dtype in (torch.int32, torch.uint16, torch.bool, torch.complex64):
        with pytest.raises(InputError, match=r"must be uint8 .* use array\.astype\('uint8'\)"):
            as_image(torch.zeros(2, 2, dtype=dtype))
