"""Scores the images of a folder against one prompt, best first, and saves their heatmaps.

    python examples/score_folder.py FOLDER --prompt "a red fox in the snow" \\
        --verifier GYX97/ImageDoctor --overlays OVERLAYS

Without --verifier the small bundled model scores them; it knows coloured shapes only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from tts_verifier import Verifier
from tts_verifier.choice.ranking import Ranked

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
TINT = {"misalignment": (40, 90, 255), "artifact": (255, 40, 40)}
"""Blue where the image contradicts the prompt, red where it looks broken."""


def overlay(item: Ranked, name: str) -> Image.Image:
    """Returns the image with one heatmap over it; the tint is opaque where the map is 1."""
    opacity = item.verdict.heatmaps[name][..., None]
    image = np.asarray(item.image, dtype=np.float32)
    blended = image * (1 - opacity) + np.asarray(TINT[name], dtype=np.float32) * opacity
    return Image.fromarray(blended.round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--verifier", default="shapes")
    parser.add_argument("--fit", choices=("squash", "pad"), default="squash")
    parser.add_argument("--overlays", type=Path, default=None, help="where to save heatmaps")
    options = parser.parse_args()
    paths = sorted(p for p in options.folder.iterdir() if p.suffix.lower() in SUFFIXES)
    verifier = Verifier.from_pretrained(options.verifier, fit=options.fit)
    for place, item in enumerate(verifier.rerank(paths, options.prompt), 1):
        path = paths[item.index]
        scores = "  ".join(f"{name} {value:.2f}" for name, value in item.verdict.scores.items())
        print(f"{place}. {path.name}  {item.objective:.3f}  ({scores})")
        if options.overlays:
            options.overlays.mkdir(parents=True, exist_ok=True)
            for name in item.verdict.heatmaps:
                overlay(item, name).save(options.overlays / f"{path.stem}.{name}.png")


if __name__ == "__main__":
    main()
