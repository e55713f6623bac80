"""Folders of damaged and disguised picture files, scored by `tts-score` with the fake verifier.

A case is one command over some twenty files; each file counts as an item. Whatever a file holds, it
has a row: with the scores that it has when it is scored alone, or with its error. A good picture
among them never loses its row to a neighbour, no program is started and nothing else is written.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from click.testing import CliRunner
from PIL import Image

from faults.decoy import Decoy
from faults.harness import Result, expect, judged, of_kind
from tts_verifier.cli.score import score_command
from tts_verifier.errors import InputError
from tts_verifier.images import as_image
from tts_verifier.testing import FakeVerifier

DEFAULT_CASES = 600
LIMIT = 20.0
FILES = 18
"""Files of a case that are damaged or disguised."""
_MODES = ("RGB", "L", "P", "1", "RGBA", "CMYK", "F", "I", "I;16")
_HEADERS: Mapping[str, bytes] = {
    "cur": b"\0\0\2\0\1\0\x10\x10\0\0\0\0\0\0\x28\1\0\0\x16\0\0\0",
    "dcx": b"\xb1\x68\xde\x3a" + struct.pack("<II", 12, 0),
    "fits": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  = 8".ljust(80),
    "fli": b"\0" * 4 + b"\x12\xaf" + b"\1\0" * 60,
    "ftex": b"FTEX" + b"\1" * 60,
    "gbr": struct.pack(">IIIII4sI", 32, 2, 60000, 60000, 4, b"GIMP", 10),
    "imt": b"*X\nwidth 60000\nheight 60000\n\x0c",
    "iptc": b"\x1c\3\x3c\0\2\1\0" * 5,
    "mcidas": b"\0\0\0\0\0\0\0\4" + b"\1" * 300,
    "mpeg": b"\0\0\1\xb3" + b"\xff" * 20,
    "pcd": b"\0" * 2048 + b"PCD_" + b"\0" * 2000,
    "pixar": b"\200\350\0\0" + b"\7" * 600,
    "psd": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 60000, 60000, 8, 3) + b"\xff" * 50,
    "sun": struct.pack(">8I", 0x59A66A95, 60000, 60000, 24, 9, 1, 0, 0),
    "wmf": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 900, 900, 96) + b"\0" * 30,
    "xpm": b'/* XPM */\nstatic char *a[] = {\n"9999 9999 2 1",\n"a c #000",\n"b c red",\n"aa"};',
    "xv": b"P7 332\n#END_OF_COMMENTS\n9999 9999 255\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "jxl": b"\xff\x0a" + b"\1" * 40,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "html": b"<html><img src=x></html>",
    "gzip": b"\x1f\x8b\x08" + b"\0" * 40,
    "pickle": pickle.dumps({"a": 1}),
    "npy": b"\x93NUMPY\1\0v\0{'descr': '|O'}",
    "zip": b"PK\3\4" + b"\0" * 60,
    "nothing": b"",
    "zeros": b"\0" * 5000,
}
_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n{} loop\n%%EOF\n"
_SUFFIXES = (".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif", ".eps", ".PNG", ".jpeg", ".xyz", "")

_shared: dict[str, Any] = {}


def prepare(home: Path) -> None:
    """Writes a picture in every format, a decoy, and a `gs` that tells when it is called."""
    decoy = _shared["decoy"] = Decoy(home / "decoy")
    tools = home / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gs").write_text(f"#!/bin/sh\ntouch '{decoy.root}/ghostscript-ran'\nsleep 90\n")
    (tools / "gs").chmod(0o755)
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    _shared["good"] = dict(_good_files())
    rows = zlib.compress((b"\0" + b"\xaa" * (14_200 // 8)) * 14_200, 1)
    _shared["bombs"] = {
        "png bomb": png(60_000, 60_000, 8, 2, b"x"),
        "mask of 200 megapixels": png(14_200, 14_200, 1, 0, rows),
        "text bomb": _text_bomb(),
    }


def _good_files() -> Iterator[tuple[str, bytes]]:
    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (33, 40, 3), dtype=np.uint8)
    for form in sorted(Image.SAVE):
        for mode in _MODES:
            buffer = io.BytesIO()
            with suppress(Exception):
                Image.fromarray(noise).convert(mode).save(buffer, form)
                yield f"{form} {mode}", buffer.getvalue()
    frames = [Image.fromarray(np.roll(noise, i)) for i in range(3)]
    for form in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
        yield f"{form} frames", buffer.getvalue()
    for method in ("tiff_lzw", "tiff_jpeg", "tiff_deflate", "group4", "packbits"):
        buffer = io.BytesIO()
        frames[0].convert("1" if method == "group4" else "RGB").save(
            buffer, "TIFF", compression=method
        )
        yield f"TIFF {method}", buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """Returns a PNG file of a stated size with any compressed data."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, body) for name, body in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    )


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _text_bomb() -> bytes:
    """A small picture with a comment that would be 60 megabytes."""
    whole = io.BytesIO()
    Image.new("RGB", (9, 9)).save(whole, "PNG")
    content = whole.getvalue()
    text = _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 60_000_000))
    return content[:33] + text + content[33:]


# -- one case -------------------------------------------------------------------------------------


def case(number: int, dice: random.Random, home: Path) -> list[Result]:
    """Writes a folder and scores it."""
    folder = home / "files"
    _clear(folder)
    folder.mkdir()
    kinds = dict(_write_files(folder, dice))
    good = _write_good(folder / "good", dice)
    paths = [*kinds, str(folder / "good")]
    output = home / f"scores{dice.choice(('.jsonl', '.parquet'))}"
    for old in home.glob("scores*"):
        old.unlink()
    arguments = [*paths, "--prompt", "a cat", "--verifier", "fake", "--output", str(output)]
    arguments += ["--format", dice.choice(("table", "jsonl"))]
    with of_kind("the command"):
        for _ in range(1 if dice.random() < 0.7 else 2):
            done = CliRunner().invoke(score_command, arguments)
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            expect(done.exit_code == 0, f"exit code {done.exit_code}: {done.output[-300:]}")
    results = list(_compare(_rows(output), kinds, good))
    _clear(folder)
    return results


def _clear(folder: Path) -> None:
    shutil.rmtree(os.fsencode(folder), ignore_errors=True)


def _write_files(folder: Path, dice: random.Random) -> Iterator[tuple[str, str]]:
    """Writes bad and odd files; yields path and kind of each."""
    for number in range(FILES):
        draw = dice.random()
        if draw < 0.06:
            yield _special(folder / f"s{number}.png", dice)
            continue
        kind, content = _content(dice)
        suffix = dice.choice(_SUFFIXES)
        name = f"{number}{suffix}".encode()
        if draw < 0.1:
            odd = (
                b"\xff\xfe",
                "é\u2028".encode(),
                b"\n",
                b"\x1b[31m",
                b"[1]",
                b"*",
                b" ",
                b"n" * 200,
            )
            name = dice.choice(odd) + name
            kind = f"{kind}, odd name"
        path = os.fsencode(folder) + b"/" + name
        with open(path, "wb") as file:
            file.write(content)
        yield os.fsdecode(path), kind


def _content(dice: random.Random) -> tuple[str, bytes]:
    draw = dice.random()
    if draw < 0.005:
        name = dice.choice(list(_shared["bombs"]))
        return name, _shared["bombs"][name]
    if draw < 0.03:
        return "PostScript", _POSTSCRIPT + bytes(dice.randrange(40))
    if draw < 0.2:
        name = dice.choice(list(_HEADERS))
        return f"{name} header", _HEADERS[name] + bytes(
            dice.choices(range(256), k=dice.randrange(9))
        )
    name = dice.choice(list(_shared["good"]))
    content = bytearray(_shared["good"][name])
    form = name.split()[0]
    if draw < 0.3:
        return f"{form} whole", bytes(content)
    for _ in range(dice.choice((1, 1, 2, 9))):
        _damage(content, dice)
    return f"{form} damaged", bytes(content)


def _damage(content: bytearray, dice: random.Random) -> None:
    # Most faults are in the first bytes: sizes, types, offsets.
    end = dice.choice((min(len(content), 64), len(content)))
    place = dice.randrange(end) if end else 0
    action = dice.randrange(6)
    if action == 0:
        del content[place:]
    elif action == 1 and content:
        content[place] ^= 1 << dice.randrange(8)
    elif action == 2:
        content[place : place + 4] = dice.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    elif action == 3:
        content[place:place] = bytes(dice.choices(range(256), k=dice.randrange(1, 20)))
    elif action == 4:
        del content[place : place + dice.randrange(1, 40)]
    else:
        content[place : place + 40] = content[:40]


def _special(path: Path, dice: random.Random) -> tuple[str, str]:
    """Makes what is in the place of a picture and is no file of its own."""
    kind = dice.choice(("fifo", "device", "socket", "dangling link", "loop", "folder", "missing"))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one, suppress(OSError):
            one.bind(str(path))
    elif kind == "dangling link":
        path.symlink_to(path.parent / "nowhere.png")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        # Empty, a folder is a mistake that is refused before anything is scored.
        (path / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4), "red").save(path / "a" / "x.png")
        return str(path / "a" / "x.png"), "PNG whole"
    return str(path), kind


def _write_good(folder: Path, dice: random.Random) -> dict[str, float]:
    """Writes good pictures, and copies of them that are hidden; returns objectives by path."""
    folder.mkdir()
    found = {}
    for number in range(3):
        picture = Image.new("RGB", (8, 8), tuple(dice.randrange(256) for _ in range(3)))
        path = folder / f"{number}.png"
        picture.save(path)
        found[str(path)] = _objective(picture)
    for hidden in (".ipynb_checkpoints/0-checkpoint.png", "._0.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "white").save(folder / hidden)
    if dice.random() < 0.5:
        linked = folder.parent / "elsewhere"
        linked.mkdir()
        Image.new("RGB", (8, 8), "blue").save(linked / "l.png")
        (folder / "link").symlink_to(linked)
        found[str(folder / "link" / "l.png")] = _objective(Image.new("RGB", (8, 8), "blue"))
    return found


def _objective(picture: Image.Image) -> float:
    verifier = FakeVerifier()
    return verifier.objective(verifier.verify([picture], ["a cat"])[0].scores)


def _rows(output: Path) -> list[dict[str, Any]]:
    if output.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
        return rows
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def _compare(
    rows: list[dict[str, Any]], kinds: Mapping[str, str], good: Mapping[str, float]
) -> Iterator[Result]:
    """Yields what came of every file."""
    by_path = {row["image"]: row for row in rows}
    wanted = len(kinds) + len(good)
    if len(rows) != wanted:
        extra = sorted(by_path.keys() - kinds.keys() - good.keys())
        missing = sorted((kinds.keys() | good.keys()) - by_path.keys())
        text = f"{len(rows)} rows of {wanted} files; too many {extra}, missing {missing}"
        yield Result("rows", "wrong", text[:300])
    for path, objective in good.items():
        row = by_path.get(path)
        fits = row is not None and not row.get("error") and row["objective"] == objective
        yield Result(
            "good neighbour", "right" if fits else "wrong", "" if fits else f"{path}: {row}"
        )
    for path, kind in kinds.items():
        # A name that is no text has a row under a name that is.
        if (row := by_path.get(path)) is not None:
            yield _compare_one(path, kind, row)
        else:
            odd = not path.isprintable() or "\udcff" in path
            yield Result(kind, "right" if odd else "wrong", "" if odd else "no row")


def _compare_one(path: str, kind: str, row: Mapping[str, Any]) -> Result:
    check: Callable[[str], Image.Image] = as_image
    if kind in ("fifo", "device", "socket"):
        refused = bool(row.get("error"))
        return Result(kind, "refused" if refused else "wrong", "" if refused else str(row)[:200])
    try:
        alone = _objective(check(path))
    except InputError:
        refused = bool(row.get("error"))
        return Result(kind, "refused" if refused else "wrong", "" if refused else str(row)[:200])
    except Exception as error:
        return judged(error, kind)
    fits = not row.get("error") and row["objective"] == alone
    return Result(kind, "right" if fits else "wrong", "" if fits else f"{alone}: {row}"[:200])
