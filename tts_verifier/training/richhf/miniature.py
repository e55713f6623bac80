"""`tts-train miniature-richhf`: a data set of the miniature world in the format of RichHF-18K.

`MINIATURE.md` describes the result. It is made in parts. A part has its own seed, so it does not
depend on the other parts or on the number of processes. Its record file is written last and whole:
a part that has one is done, and the same command goes on with the others after a kill.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tts_verifier.errors import InputError, RunError
from tts_verifier.evaluation.rated import MARKED_MAPS
from tts_verifier.identity import seed_for
from tts_verifier.loading.devices import check_device
from tts_verifier.training.common.bounds import check_processes
from tts_verifier.training.richhf.dataset import PROMPT_KEY, prompt_files
from tts_verifier.training.richhf.fields import (
    MAP_SIDE,
    EncodedMaps,
    Rating,
    serialise_rating,
    uid_of,
)
from tts_verifier.training.richhf.raters import RaterPanel
from tts_verifier.training.richhf.tfrecord import write_records
from tts_verifier.training.settings_file import claim_folder
from tts_verifier.types import Box

if TYPE_CHECKING:
    from tts_verifier.training.miniature.verifier.rows import Truth
    from tts_verifier.training.richhf.pictures import MadePicture

SIZES: Final[Mapping[str, int]] = {"train": 15810, "dev": 995, "test": 955, "test_more": 4000}
"""Split -> pictures: those of RichHF-18K, and one more for tests with narrow intervals."""
CONFIG_FILE: Final = "miniature.json"
_TO_MAP: Final = MAP_SIDE / 128
"""Pixels of a map to one of a picture."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some pictures of a split, made and written together."""

    split: str
    """Its split."""
    index: int
    """Its number among the parts of the split."""
    parts: int
    """How many parts the split has."""
    count: int
    """Its pictures."""
    run_seed: int
    """The seed of the data set."""
    sampled: int
    """How many of its pictures are a generator's samples."""

    @property
    def name(self) -> str:
        """Names its files."""
        return f"{self.split}-{self.index:05d}-of-{self.parts:05d}"

    @property
    def seed(self) -> int:
        """Decides its pictures and ratings."""
        # 60 bits, as seeds of single pictures are counted up from it.
        return seed_for(self.run_seed, self.split, self.index, "richhf") >> 3


def make_miniature_richhf(
    *,
    output: str,
    seed: int = 0,
    sizes: Mapping[str, int] = SIZES,
    sample_share: float = 0.5,
    part: int = 256,
    processes: int = -1,
    device: str | None = None,
) -> None:
    """Makes the data set, or what is missing of it. The arguments are the keys of the config.

    Args:
        output: the folder to write.
        seed: decides everything.
        sizes: pictures of each split; the names are those of SIZES.
        sample_share: share of samples of the bundled generator among the pictures, in [0, 1]. The
            others are renders with planted flaws.
        part: pictures that are made and written at a time.
        processes: that make pictures; -1 = one for each core.
        device: where the generator draws; None = the GPU if there is one.

    Raises:
        InputError: an argument is out of range, or this machine has no such device.
        RunError: the folder has something else, or another data set, or cannot be written.
    """
    _check_arguments(sizes, sample_share, part=part, processes=processes)
    check_device(device)
    settings = {"seed": seed, "sizes": dict(sizes), "sample_share": sample_share, "part": part}
    folder = Path(output)
    claim_folder(folder / CONFIG_FILE, settings)
    parts = [p for split in sizes for p in _parts_of(split, sizes[split], settings)]
    todo = [p for p in parts if not _record_path(folder, p).exists()]
    _make_parts(folder, todo, processes, device)
    print(f"{sum(sizes.values())} pictures: {folder}", flush=True)


def read_truths(data: Path, split: str) -> dict[str, Truth]:
    """Returns the truth about the pictures of a split by uid, which the ratings scatter around.

    Raises:
        InputError: the folder has no miniature of RichHF-18K.
    """
    from tts_verifier.training.richhf.pictures import truth_from_json

    truths: dict[str, Truth] = {}
    for file in prompt_files(data / "prompts"):
        if not file.name.startswith(f"{split}-"):
            continue
        # Not `splitlines`, which takes more characters for ends of lines than JSON does.
        for line in filter(None, file.read_text(encoding="utf-8").split("\n")):
            row = json.loads(line)
            truths[uid_of(row["filename"])] = truth_from_json(row)
    return truths


def _check_arguments(
    sizes: Mapping[str, int], sample_share: float, *, part: int, processes: int
) -> None:
    unknown = [name for name in sizes if name not in SIZES]
    if unknown or not sizes:
        raise InputError(
            f"sizes must name splits of {', '.join(SIZES)}, got {', '.join(unknown) or 'none'}.",
            argument="sizes",
        )
    for name, size in sizes.items():
        if size < 1:
            raise InputError(
                f"sizes.{name} must be at least 1, got {size}. Leave the split out for none.",
                argument="sizes",
            )
    if not 0 <= sample_share <= 1:
        raise InputError(
            f"sample_share must be in [0, 1], got {sample_share}.", argument="sample_share"
        )
    if part < 1:
        raise InputError(f"part must be at least 1, got {part}.", argument="part")
    check_processes("processes", processes)
    if processes == 0:
        raise InputError(
            "processes must be a number of processes, or -1 for one for each core; got 0.",
            argument="processes",
        )


def _parts_of(split: str, size: int, settings: Mapping[str, Any]) -> list[Part]:
    starts = range(0, size, settings["part"])
    counts = [min(settings["part"], size - start) for start in starts]
    return [
        Part(split, i, len(counts), n, settings["seed"], round(n * settings["sample_share"]))
        for i, n in enumerate(counts)
    ]


def _record_path(folder: Path, part: Part) -> Path:
    return folder / f"{part.name}.tfrecord"


def _make_parts(folder: Path, parts: list[Part], processes: int, device: str | None) -> None:
    import joblib

    total, done, start = sum(part.count for part in parts), 0, time.perf_counter()
    # A process that starts costs seconds: none starts without a part to make.
    count = max(1, min(joblib.effective_n_jobs(processes), len(parts)))
    workers = joblib.Parallel(n_jobs=count, return_as="generator_unordered")
    tasks = (joblib.delayed(make_part)(folder, *drawn) for drawn in _drawn(parts, device))
    try:
        for made in workers(tasks):
            done += made
            rate = done / (time.perf_counter() - start)
            print(
                f"{done} of {total} pictures, {rate:.0f}/s, {(total - done) / rate:.0f} s left",
                flush=True,
            )
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error}. What is there is whole; the same command goes "
            "on from there."
        ) from error


def _drawn(parts: list[Part], device: str | None) -> Iterator[tuple[Part, list[str], Any]]:
    """Yields each part with its captions and samples; joblib asks for a few parts in advance."""
    from tts_verifier.training.miniature.generator.sampling import sample_captions
    from tts_verifier.training.richhf.pictures import draw_samples

    for part in parts:
        # Training sees no caption of the other splits, but for the three small categories.
        captions = sample_captions(
            part.count, part.seed, "train" if part.split == "train" else "held_out"
        )
        samples = np.empty((0, 128, 128, 3), np.uint8)
        if part.sampled:
            samples = draw_samples(captions[: part.sampled], part.seed, device)
        yield part, captions, samples


def make_part(folder: Path, part: Part, captions: list[str], samples: Any) -> int:
    """Makes and writes one part, and returns its number of pictures."""
    from tts_verifier.training.richhf.pictures import make_pictures, truth_as_json

    panel = RaterPanel(part.run_seed, part.seed)
    records, rows = [], []
    (folder / "images" / part.split).mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(make_pictures(captions, samples, part.seed)):
        filename = f"{part.split}/{_uid(part, number)}.png"
        _write_picture(folder / "images" / filename, picture)
        records.append(serialise_rating(_rated(filename, picture, panel)))
        rows.append({"filename": filename, "prompt": picture.caption} | truth_as_json(picture))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    _write_whole(folder / "prompts" / f"{part.name}.jsonl", lines.encode())
    write_records(_record_path(folder, part), records)
    return part.count


def _rated(filename: str, picture: MadePicture, panel: RaterPanel) -> Rating:
    from tts_verifier.training.richhf.pictures import aligned_words

    regions = {"artifact": picture.artifacts, "misalignment": picture.truth.reading.boxes}
    maps = {name: _encoded_map(panel, regions[name]) for name in MARKED_MAPS}
    words = panel.words(aligned_words(picture.caption, picture.truth.reading))
    return Rating(filename, panel.scores(picture.truth.scores), EncodedMaps(maps), words)


def _encoded_map(panel: RaterPanel, boxes: tuple[Box, ...]) -> bytes:
    scaled = [(x1 * _TO_MAP, y1 * _TO_MAP, x2 * _TO_MAP, y2 * _TO_MAP) for x1, y1, x2, y2 in boxes]
    buffer = io.BytesIO()
    Image.fromarray(panel.marks(scaled)).save(buffer, "png", compress_level=4)
    return buffer.getvalue()


def _uid(part: Part, number: int) -> uuid.UUID:
    key = f"{part.run_seed}/{part.name}/{number}".encode()
    return uuid.UUID(bytes=hashlib.sha256(key).digest()[:16], version=4)


def _write_picture(path: Path, picture: MadePicture) -> None:
    text = PngInfo()
    text.add_text(PROMPT_KEY, picture.caption)
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "png", pnginfo=text)
    path.write_bytes(buffer.getvalue())


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    draft.write_bytes(content)
    draft.replace(path)
