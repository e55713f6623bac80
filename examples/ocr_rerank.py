"""Draws a text on real photographs, misspells it, and shows that score and map follow.

    pip install "tts-verifier[ocr]" scikit-image
    python examples/ocr_rerank.py --out ocr_rerank.png

No image model is needed: the OCR judge is real, and so are the photographs. On each of three
photographs the text is drawn rightly, with one wrong letter and with three; `rerank` sorts them.
Then `inpaint_reroll` mends a misspelt sign: the generator is a sign painter that paints the right
letters, but only inside the mask that it is given. The sheet has the ranked images, the maps over
them, and in the last row the sign before, its mask, and after.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from tts_verifier import run
from tts_verifier.generators.paste import paste
from tts_verifier.strategies.inpaint_reroll import InpaintReroll
from tts_verifier.types import Cost, Draw, Job, Repaint, Sample
from tts_verifier.verifiers.rules import OCRVerifier

SIDE = 512
TEXT = "FRESH COFFEE"
PROMPT = f'a photograph with a banner that says "{TEXT}"'
SPELLINGS = (TEXT, "FRESH COFFKE", "FRUSH COTFKE")
PHOTOS = ("coffee", "chelsea", "astronaut")
LINE = 22


def photograph(name: str) -> Image.Image:
    """Returns the middle of one of scikit-image's photographs."""
    photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))


def with_banner(photo: Image.Image, text: str) -> Image.Image:
    """Returns a copy with a word a line over its lower part."""
    image = photo.copy()
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(64)
    for row, word in enumerate(text.split()):
        place = (60 + 60 * row, 270 + 110 * row)
        draw.text(place, word, "white", font, stroke_width=3, stroke_fill="black")
    return image


class SignPainter:
    """Draws the banner with wrong letters, and repaints it rightly inside a mask.

    May be shared between threads.
    """

    supports = frozenset({Draw, Repaint})
    settings = {"model": "sign painter"}  # noqa: RUF012
    batch_size = 4

    def generate(self, jobs: Sequence[Job]) -> list[Sample]:
        """Returns an image for each job."""
        return [self._sample(job) for job in jobs]

    def _sample(self, job: Job) -> Sample:
        photo = photograph(PHOTOS[0])
        image = with_banner(photo, SPELLINGS[1])
        parent = job.ancestors[0].image if job.ancestors else None
        if isinstance(job.proposal, Repaint) and parent is not None:
            image = paste(parent.load(), with_banner(photo, TEXT), job.proposal.mask)
        return Sample(job, image, cost=Cost(network_evaluations=1))


def titled(image: Image.Image, title: str) -> Image.Image:
    """Returns half of the size of an image with a line of text above."""
    tile = Image.new("RGB", (SIDE // 2, SIDE // 2 + LINE), "white")
    ImageDraw.Draw(tile).text((2, 2), title, "black", ImageFont.load_default(15))
    tile.paste(image.resize((SIDE // 2, SIDE // 2)), (0, LINE))
    return tile


def ranked(judge: OCRVerifier, name: str) -> list[Image.Image]:
    """Returns the three spellings on a photograph, best first, each beside its map."""
    photo = photograph(name)
    tiles = []
    for item in judge.rerank([with_banner(photo, text) for text in SPELLINGS], PROMPT):
        print(f"{name}: {item.objective:.3f}  {item.verdict.text}")
        tiles.append(titled(item.image, f"text_match {item.objective:.3f}"))
        tiles.append(titled(item.verdict.overlay(item.image), "misspelling"))
    return tiles


def mended(judge: OCRVerifier) -> list[Image.Image]:
    """Returns a misspelt sign, its map, the mask, the repainted sign and its map."""
    strategy = InpaintReroll(1, 1, strengths=(1.0,), fresh=0)
    result = run([PROMPT], SignPainter(), judge, strategy)
    before, after = result.trials
    assert before.image is not None
    assert after.image is not None
    assert before.verdict is not None
    assert after.verdict is not None
    assert isinstance(after.proposal, Repaint)
    old, new = before.image.load(), after.image.load()
    masked = np.asarray(old).copy()
    masked[after.proposal.mask.array()] = 0
    print(f"inpaint_reroll: {before.objective:.3f} -> {after.objective:.3f}")
    return [
        titled(old, f"drawn {before.objective:.3f}"),
        titled(before.verdict.overlay(old), "misspelling"),
        titled(Image.fromarray(masked), "mask"),
        titled(new, f"repainted {after.objective:.3f}"),
        titled(after.verdict.overlay(new), "misspelling"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("ocr_rerank.png"))
    parser.add_argument("--threads", type=int, help="of the CPU for one image")
    options = parser.parse_args()
    judge = OCRVerifier(threads=options.threads)
    rows = [*(ranked(judge, name) for name in PHOTOS), mended(judge)]
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (6 * (width + 4), len(rows) * (height + 4)), "white")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(tile, (x * (width + 4), y * (height + 4)))
    sheet.save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
