"""Draws the repaints of a run that were accepted: the flaw, the heatmap, the mask, what came out.

    tts-run recipes/inpaint_reroll.yaml
    python examples/repairs.py runs/inpaint_reroll --out repairs.png

The first prompts that have one, of each the repaint that gained most.
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


def repairs(trials: list[Trial], most: int) -> list[tuple[Trial, Trial]]:
    """Returns (parent, accepted repaint), one a prompt."""
    known = {t.id: t for t in trials}
    found: dict[str, tuple[Trial, Trial]] = {}
    for child in trials:
        if not isinstance(child.proposal, Repaint):
            continue
        parent, name = known[child.proposal.parent], child.prompt.id
        if accepted(child, parent, 0.0) and (
            name not in found or gain(parent, child) > gain(*found[name])
        ):
            found[name] = (parent, child)
    return [found[name] for name in sorted(found)[:most]]


def gain(parent: Trial, child: Trial) -> float:
    """Returns by how much the objective rose."""
    return child.objective - parent.objective


def strip(parent: Trial, child: Trial) -> Image.Image:
    """Draws parent, heatmaps, mask and child side by side, with their objectives."""
    assert parent.image is not None
    assert child.image is not None
    assert isinstance(child.proposal, Repaint)
    before = parent.image.load()
    verdict = parent.verdict
    mask = child.proposal.mask.array()
    masked = np.asarray(before).copy()
    masked[mask] = 0
    tiles = (
        (f"{parent.objective:.3f}", before),
        ("flaw", verdict.overlay(before)),
        ("mask", Image.fromarray(masked)),
        (f"{child.objective:.3f}", child.image.load()),
    )
    canvas = Image.new("RGB", (len(tiles) * (TILE + 4) + 8, TILE + 2 * TEXT + 8), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 2), parent.prompt.text.encode("latin-1", "replace").decode("latin-1"), "black")
    for i, (label, picture) in enumerate(tiles):
        draw.text((i * (TILE + 4) + 2, TEXT), label, "black")
        canvas.paste(picture.resize((TILE, TILE)), (i * (TILE + 4), 2 * TEXT + 2))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("repairs.png"))
    parser.add_argument("--most", type=int, default=8)
    options = parser.parse_args()
    strips = [strip(*pair) for pair in repairs(read_trials(options.run), options.most)]
    if not strips:
        parser.exit(1, f"{options.run} has no accepted repaint.\n")
    width, height = strips[0].size
    sheet = Image.new("RGB", (2 * width, -(-len(strips) // 2) * height), "white")
    for i, one in enumerate(strips):
        sheet.paste(one, (i % 2 * width, i // 2 * height))
    sheet.save(options.out)
    print(f"{options.out}: {len(strips)} accepted repaints")


if __name__ == "__main__":
    main()
