"""Sorts existing images by how well they match a prompt.

    python examples/rerank.py "a red fox in the snow" a.png b.png --verifier GYX97/ImageDoctor

Without --verifier the small bundled model scores them; it knows coloured shapes only.
"""

from __future__ import annotations

import argparse

from tts_verifier import Verifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--verifier", default="shapes")
    options = parser.parse_args()
    ranking = Verifier.from_pretrained(options.verifier).rerank(options.images, options.prompt)
    for item in ranking:
        print(f"{item.objective:.3f}  {options.images[item.index]}")


if __name__ == "__main__":
    main()
