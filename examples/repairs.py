"""Shows the accepted repaints of a run: the original, its heatmaps, the mask, the result.

    tts-run recipes/inpaint_reroll.yaml
    python examples/repairs.py runs/inpaint_reroll --out repairs.png

It shows the repaint with the largest gain of each prompt, for the first prompts that have one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tts_verifier.log.reader import read_trials
from tts_verifier.strategies.inpaint_reroll import accepted
from tts_verifier.types import Repaint, Trial

TILE, TEXT = 144, 16
"""Pixels: side of an image on the sheet, height of a line of text."""


def best_repairs(trials: list[Trial], most: int) -> list[tuple[Trial, Trial]]:
    """Returns (parent, accepted repaint), at most one per prompt and `most` in all."""
    by_id = {t.id: t for t in trials}
    best: dict[str, tuple[Trial, Trial]] = {}
    for child in trials:
        if not isinstance(child.proposal, Repaint):
            continue
        parent, name = by_id[child.proposal.parent], child.prompt.id
        if accepted(child, parent, 0.0) and (
            name not in best or gain(parent, child) > gain(*best[name])
        ):
            best[name] = (parent, child)
    return [best[name] for name in sorted(best)[:most]]


def gain(parent: Trial, child: Trial) -> float:
    """Returns the rise of the objective."""
    return child.objective - parent.objective


def strip(parent: Trial, child: Trial) -> Image.Image:
    """Puts parent, heatmaps, mask and child side by side, with the objectives."""
    assert parent.image is not None
    assert child.image is not None
    assert isinstance(child.proposal, Repaint)
    before = parent.image.load()
    assert parent.verdict is not None
    mask = child.proposal.mask.array()
    masked = np.asarray(before).copy()
    masked[mask] = 0
    tiles = (
        (f"{parent.objective:.3f}", before),
        ("flaw", parent.verdict.overlay(before)),
        ("mask", Image.fromarray(masked)),
        (f"{child.objective:.3f}", child.image.load()),
    )
    canvas = Image.new("RGB", (len(tiles) * (TILE + 4) + 8, TILE + 2 * TEXT + 8), "white")
    draw = ImageDraw.Draw(canvas)
    # Pillow's built-in font has Latin-1 letters only.
    draw.text((2, 2), parent.prompt.text.encode("latin-1", "replace").decode("latin-1"), "black")
    for i, (label, image) in enumerate(tiles):
        draw.text((i * (TILE + 4) + 2, TEXT), label, "black")
        canvas.paste(image.resize((TILE, TILE)), (i * (TILE + 4), 2 * TEXT + 2))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("repairs.png"))
    parser.add_argument("--most", type=int, default=8)
    options = parser.parse_args()
    strips = [strip(*pair) for pair in best_repairs(read_trials(options.run), options.most)]
    if not strips:
        parser.exit(1, f"{options.run} has no accepted repaint.\n")
    width, height = strips[0].size
    sheet = Image.new("RGB", (2 * width, -(-len(strips) // 2) * height), "white")
    for i, repair in enumerate(strips):
        sheet.paste(repair, (i % 2 * width, i // 2 * height))
    sheet.save(options.out)
    print(f"{options.out}: {len(strips)} accepted repaints")


if __name__ == "__main__":
    main()
