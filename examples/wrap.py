"""Verified generation in two lines: wrap a pipeline, then call it as usual.

    python examples/wrap.py "a red circle left of a blue square"
    python examples/wrap.py "a red fox" --model stabilityai/stable-diffusion-3.5-medium \\
        --verifier GYX97/ImageDoctor

Without --model and --verifier it uses the small bundled models, which know coloured shapes only.
"""

from __future__ import annotations

import argparse

from tts_verifier import BestOfN, wrap
from tts_verifier.generators.diffusers.loading import BUNDLED_CALL, load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--verifier", default="shapes")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--output", default="best.png")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    call = BUNDLED_CALL if args.model == "shapes" else {}

    pipe = wrap(pipe, args.verifier, strategy=BestOfN(args.candidates))
    out = pipe(args.prompt, seed=0, **call)

    for item in out.ranking:
        scores = "  ".join(f"{name} {value:.2f}" for name, value in item.verdict.scores.items())
        print(f"candidate {item.index}  {item.objective:.3f}  ({scores})")
    if out.images[0] is None:
        raise SystemExit("No candidate could be generated.")
    if not out.verified[0]:
        print("No candidate has a usable verdict; this is the first drawing.")
    out.images[0].save(args.output)


if __name__ == "__main__":
    main()
