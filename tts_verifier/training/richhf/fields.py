"""The fields of a RichHF-18K record, with their types, shapes and ranges checked.

- `filename`: bytes; its stem is the uid of the picture in Pick-a-Pic.
- `artifact_score`, `aesthetics_score`, `misalignment_score`, `overall_score`: one float32 in
  [0, 1]; higher is better for all four.
- `artifact_map`, `misalignment_map`: an encoded grey image of 512 x 512 bytes, 255 = marked by all.
- `prompt_misalignment_label`: bytes such as "1 0 1", one for each word of the prompt, 0 =
  misaligned.

Source: google-research-datasets/richhf-18k, and `parse_tfrecord_file.py` and
`match_label_to_token.py` in google-research/richhf_18k. What is called a score of artifacts there
is plausibility here, and that of misalignment is semantic alignment.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.evaluation.rated import MARKED_MAPS
from tts_verifier.images import open_image
from tts_verifier.training.richhf.example import Feature, parse_example, serialise_example

MAP_SIDE: Final = 512
"""Width and height of the maps, in pixels."""
SCORE_FIELDS: Final[Mapping[str, str]] = {
    "plausibility": "artifact_score",
    "aesthetics": "aesthetics_score",
    "semantic_alignment": "misalignment_score",
    "overall": "overall_score",
}
"""The package's name of a score -> its field."""

_ROUNDING: Final = 1e-6
"""How far a float32 may leave [0, 1] by rounding."""
_SEPARATORS: Final = re.compile(r'[,.?!":; ]+')


class EncodedMaps(Mapping[str, NDArray[np.uint8]]):
    """Heatmaps by name, each uint8 (512, 512), which stay encoded until they are used.

    Args:
        encoded: encoded grey images by name.
        name: of the picture, for messages.
    """

    def __init__(self, encoded: Mapping[str, bytes], name: str = "") -> None:
        self.encoded, self.name = encoded, name

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        place = f"{self.name}: {name}_map"
        image = _opened(self.encoded[name], place)
        try:
            return np.asarray(image.convert("L"))
        # Decoders raise almost anything on a damaged map.
        except Exception as error:
            raise _not_an_image(place, error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.encoded)

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True, slots=True, eq=False)
class Rating:
    """What the raters said of one picture."""

    filename: str
    """As in the record, such as "train/a83f….png"."""
    scores: Mapping[str, float]
    """Each of SCORE_FIELDS, in [0, 1]."""
    maps: EncodedMaps
    """`artifact` and `misalignment`."""
    aligned: tuple[bool, ...]
    """Whether each word of the prompt is shown, words as in `prompt_words`."""

    @property
    def uid(self) -> str:
        """The stem of the file's name, by which pictures and prompts are found."""
        return uid_of(self.filename)


def parse_rating(record: bytes) -> Rating:
    """Reads a record and checks every field.

    Raises:
        InputError: a field is missing, or has another type, shape or range.
    """
    features = parse_example(record)
    filename = _one_text(features, "filename")
    scores = {name: _checked_score(features, field) for name, field in SCORE_FIELDS.items()}
    maps = {name: _one_bytes(features, f"{name}_map") for name in MARKED_MAPS}
    for name, encoded in maps.items():
        _check_map(encoded, f"{filename}: {name}_map")
    labels = _one_text(features, "prompt_misalignment_label").split()
    if not set(labels) <= {"0", "1"}:
        raise InputError(
            f"{filename}: prompt_misalignment_label must hold 0 and 1, got {' '.join(labels)!r}."
        )
    aligned = tuple(label == "1" for label in labels)
    return Rating(filename, scores, EncodedMaps(maps, filename), aligned)


def serialise_rating(rating: Rating) -> bytes:
    """Returns the record of a rating."""
    return serialise_example(
        {
            "filename": [rating.filename.encode()],
            "prompt_misalignment_label": [" ".join(str(int(a)) for a in rating.aligned).encode()],
            **{f"{name}_map": [encoded] for name, encoded in rating.maps.encoded.items()},
            **{
                field: np.array([rating.scores[name]], np.float32)
                for name, field in SCORE_FIELDS.items()
            },
        }
    )


def uid_of(filename: str) -> str:
    """Returns the stem of a file's name."""
    return PurePosixPath(filename).stem


def prompt_words(prompt: str) -> list[str]:
    """Splits a prompt into the words that `prompt_misalignment_label` labels."""
    return [word for word in _SEPARATORS.split(prompt) if word]


def _feature_of(features: Mapping[str, Feature], field: str) -> Feature:
    if field not in features:
        raise InputError(
            f"A record needs the field {field!r}, got {', '.join(sorted(features)) or 'none'}."
        )
    return features[field]


def _one_bytes(features: Mapping[str, Feature], field: str) -> bytes:
    values = _feature_of(features, field)
    if not isinstance(values, list) or len(values) != 1:
        raise InputError(f"The field {field!r} must hold one value of bytes, got {values!r:.80}.")
    return values[0]


def _one_text(features: Mapping[str, Feature], field: str) -> str:
    value = _one_bytes(features, field)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"The field {field!r} must be UTF-8, got {value!r:.80}.") from error


def _checked_score(features: Mapping[str, Feature], field: str) -> float:
    values, name = _feature_of(features, field), _one_text(features, "filename")
    if isinstance(values, list) or values.dtype != np.float32 or len(values) != 1:
        raise InputError(f"{name}: {field} must be one float32, got {values!r:.80}.")
    value = float(values[0])
    # Written so that NaN, with which every comparison is false, is refused too.
    if not -_ROUNDING <= value <= 1 + _ROUNDING:
        raise InputError(
            f"{name}: {field} must be in [0, 1], got {value:g}. Ratings from 1 to 5 become "
            "(rating - 1) / 4."
        )
    return min(max(value, 0.0), 1.0)


def _check_map(encoded: bytes, place: str) -> None:
    image = _opened(encoded, place)
    if image.size != (MAP_SIDE, MAP_SIDE):
        width, height = image.size
        raise InputError(f"{place} must be {MAP_SIDE} x {MAP_SIDE} pixels, got {width} x {height}.")
    if image.mode not in ("L", "RGB"):
        raise InputError(f"{place} must be grey with 8 bits, got the mode {image.mode}.")


def _opened(encoded: bytes, place: str) -> Image.Image:
    try:
        return open_image(io.BytesIO(encoded))
    # Not only damage: a map of too many pixels is a decompression bomb.
    except Exception as error:
        raise _not_an_image(place, error) from error


def _not_an_image(place: str, error: Exception) -> InputError:
    return InputError(f"{place} must be an encoded image, and is not: {error}")
