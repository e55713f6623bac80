"""Verified generation in two lines: wrap a pipeline, call it as ever.

    python examples/wrap.py "a red circle left of a blue square"
    python examples/wrap.py "a red fox" --model stabilityai/stable-diffusion-3.5-medium \\
        --verifier GYX97/ImageDoctor

Without --model and --verifier the small bundled models are used, which know coloured shapes.
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
    options = parser.parse_args()
    pipe = load_pipeline(options.model)
    call = BUNDLED_CALL if options.model == "shapes" else {}

    pipe = wrap(pipe, options.verifier, strategy=BestOfN(options.candidates))
    out = pipe(options.prompt, seed=0, **call)

    for item in out.ranking:
        scores = "  ".join(f"{name} {value:.2f}" for name, value in item.verdict.scores.items())
        print(f"candidate {item.index}  {item.objective:.3f}  ({scores})")
    if out.images[0] is None:
        raise SystemExit("No candidate could be drawn and judged.")
    out.images[0].save(options.output)


if __name__ == "__main__":
    main()
