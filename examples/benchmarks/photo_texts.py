"""Draws texts on scikit-image's photographs, right or with one wrong letter.

Everything follows from a number. The font is the scalable one that Pillow brings (Aileron); size,
weight, width, slant, rotation, colour, outline and a sign behind the text vary.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 512
"""Width and height of an image in pixels."""
PHOTOS = (
    "astronaut", "chelsea", "coffee", "rocket", "camera", "motorcycle", "retina", "hubble",
    "coins", "brick", "grass", "gravel",
)  # fmt: skip
WORDS = (
    "open", "closed", "welcome", "fresh", "coffee", "bakery", "market", "garden", "summer",
    "winter", "sale", "today", "only", "exit", "entrance", "please", "wait", "here", "library",
    "museum", "hotel", "airport", "station", "bridge", "river", "street", "music", "theatre",
    "happy", "birthday", "love", "peace", "dream", "future", "science", "space", "rocket",
    "launch", "moon", "planet", "star", "water", "fire", "earth", "wind", "north", "south",
    "east", "west", "danger", "warning", "caution", "stop", "slow", "school", "zone", "speed",
    "limit", "private", "property", "keep", "out", "no", "parking", "free", "ticket", "office",
    "bank", "post", "pizza", "burger", "salad", "juice", "lemon", "orange", "apple", "banana",
    "cherry", "hello", "world", "good", "morning", "night", "kitchen", "flower",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A text, and how it is drawn on a photograph."""

    number: int
    words: tuple[str, ...]
    lines: tuple[tuple[int, ...], ...]
    """Indices of the words of each line."""
    wrong: int = -1
    """The word with the wrong letter; -1 = none."""

    @property
    def text(self) -> str:
        """The words with spaces between."""
        return " ".join(self.words)


@lru_cache(maxsize=1)
def photos() -> list[Image.Image]:
    """Returns the photographs as RGB images."""
    import skimage.data

    pictures = []
    for name in PHOTOS:
        if name == "motorcycle":
            # The pair comes with the file of its disparity, which is not needed.
            pixels = skimage.data.stereo_motorcycle()[0]
        else:
            pixels = getattr(skimage.data, "hubble_deep_field" if name == "hubble" else name)()
        pictures.append(Image.fromarray(pixels).convert("RGB"))
    return pictures


def scene(number: int) -> Scene:
    """Returns the scene of a number: one to four words in one or two lines."""
    rng = np.random.default_rng((number, 0))
    count = int(rng.integers(1, 5))
    words = [str(w) for w in rng.choice(np.array(WORDS), count, replace=False)]
    style = rng.integers(3)
    words = [w.upper() if style == 0 else w.capitalize() if style == 1 else w for w in words]
    if rng.random() < 0.2:
        words.append(str(rng.integers(1, 100)))
    half = -(-len(words) // 2)
    lines = [range(half), range(half, len(words))] if len(words) > 2 else [range(len(words))]
    return Scene(number, tuple(words), tuple(map(tuple, lines)))


def misspelt(right: Scene) -> Scene:
    """Returns the scene with one letter of one word replaced by another letter of its case."""
    rng = np.random.default_rng((right.number, 1))
    places = [
        (w, i) for w, word in enumerate(right.words) for i, c in enumerate(word) if c.isalpha()
    ]
    w, i = places[rng.integers(len(places))]
    word = right.words[w]
    letters = string.ascii_uppercase if word[i].isupper() else string.ascii_lowercase
    other = rng.choice([c for c in letters if c != word[i]])
    words = list(right.words)
    words[w] = f"{word[:i]}{other}{word[i + 1 :]}"
    return replace(right, words=tuple(words), wrong=w)


def render(drawn: Scene) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Returns the RGB image, and the box around the ink of every word, (x1, y1, x2, y2)."""
    rng = np.random.default_rng((drawn.number, 2))
    photo = _crop(photos()[rng.integers(len(PHOTOS))], rng)
    layers = _word_layers(drawn, rng)
    boxes = [Image.fromarray((layer > 128).astype(np.uint8)).getbbox() for layer in layers]
    ink = np.max(layers, axis=0)
    pixels = np.asarray(photo, np.float32)
    inside = pixels.mean(axis=2)[ink > 128]
    # Light letters on dark ground, dark ones on light ground.
    light = inside.mean() <= 110
    shift = rng.uniform(-20, 60, 3)
    colour = np.clip(240 - shift if light else 20 + shift, 0, 255)
    backing = rng.integers(3)
    if backing == 0 and np.ptp(np.percentile(inside, (5, 95))) > 90:
        # No colour is legible on both.
        backing = 1
    if backing:
        from scipy.ndimage import maximum_filter

        ground = 255 - colour.mean() * np.ones(3)
        # An outline of three pixels, or a sign around all words.
        halo = maximum_filter(ink, 7) if backing == 1 else _sign(boxes)
        pixels = _blend(pixels, ground, halo)
    pixels = _blend(pixels, colour, ink)
    return Image.fromarray(np.rint(pixels).astype(np.uint8)), boxes


def _blend(
    pixels: NDArray[np.float32], colour: NDArray[np.float32], cover: NDArray[np.uint8]
) -> NDArray[np.float32]:
    share = cover[:, :, None].astype(np.float32) / 255
    return (1 - share) * pixels + share * colour.astype(np.float32)


def _sign(boxes: list[tuple[int, int, int, int]]) -> NDArray[np.uint8]:
    x1, y1 = (min(box[i] for box in boxes) for i in (0, 1))
    x2, y2 = (max(box[i] for box in boxes) for i in (2, 3))
    sign = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(sign).rounded_rectangle((x1 - 16, y1 - 14, x2 + 16, y2 + 14), 10, fill=255)
    return np.asarray(sign)


def _crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(min(photo.size) * rng.uniform(0.7, 1))
    x, y = (int(rng.integers(0, length - side + 1)) for length in photo.size)
    return photo.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _word_layers(drawn: Scene, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Returns the cover of every word, uint8 (SIDE, SIDE)."""
    size, bold = float(rng.uniform(28, 64)), int(rng.integers(0, 2))
    width, slant, turn = rng.uniform(0.85, 1.15), rng.uniform(-0.05, 0.25), rng.uniform(-7, 7)
    longest = max(len(" ".join(drawn.words[i] for i in line)) for line in drawn.lines)
    # A letter is about 0.6 of the size wide.
    size = min(size, 0.85 * SIDE / (0.62 * width * longest))
    font = ImageFont.load_default(size)
    lengths = [font.getlength(" ".join(drawn.words[i] for i in line)) for line in drawn.lines]
    room_x = max(SIDE - width * max(lengths) - 60, 1)
    room_y = max(SIDE - 1.5 * size * len(drawn.lines) - 120, 1)
    left, top = 30 + rng.uniform(0, room_x), 60 + rng.uniform(0, room_y)
    layers: dict[int, NDArray[np.uint8]] = {}
    for row, line in enumerate(drawn.lines):
        x = 0.0
        for i in line:
            layer = Image.new("L", (2 * SIDE, 2 * SIDE))
            # The text starts at (0, 0) of its own plane, which lies in the middle of the layer.
            ImageDraw.Draw(layer).text(
                (SIDE / 2 + x, SIDE / 2 + 1.4 * size * row), drawn.words[i], 255, font,
                stroke_width=bold,
            )  # fmt: skip
            x += font.getlength(f"{drawn.words[i]} ")
            layers[i] = _placed(layer, left, top, width, slant, turn)
    return [layers[i] for i in range(len(drawn.words))]


def _placed(
    layer: Image.Image, left: float, top: float, width: float, slant: float, turn: float
) -> NDArray[np.uint8]:
    """Stretches, slants and turns a layer, and moves its middle to (left, top)."""
    angle = np.deg2rad(turn)
    forward = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = forward @ np.array([[width, -slant], [0, 1]])
    back = np.linalg.inv(forward)
    offset = np.array([SIDE / 2, SIDE / 2]) - back @ np.array([left, top])
    values = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    placed = layer.transform((SIDE, SIDE), Image.Transform.AFFINE, values, Image.Resampling.BICUBIC)
    return np.asarray(placed)
