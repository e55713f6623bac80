"""What wrapping costs: best-of-1 of a wrapped pipeline beside the bare one, in milliseconds.

    python examples/benchmarks/wrap_overhead.py --runs 20

The pipeline is the bundled one; the verifier is a fake whose own time is taken off. Runs of
the two alternate, so that a busy machine slows both. The line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from tts_verifier import BestOfN, wrap
from tts_verifier.generators.diffusers.loading import BUNDLED_CALL, load_pipeline
from tts_verifier.testing import FakeVerifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--model", default="shapes")
    options = parser.parse_args()
    pipe = load_pipeline(options.model)
    call: dict[str, Any] = dict(BUNDLED_CALL) if options.model == "shapes" else {}
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(1))
    bare, wrapped = [], []
    for number in range(options.runs + 1):
        began = time.perf_counter()
        pipe("a red circle", generator=torch.Generator().manual_seed(number), **call)
        middle = time.perf_counter()
        out = verified("a red circle", seed=number, **call)
        judging = sum(trial.cost.judge_seconds for trial in out.trials)
        wrapped.append(time.perf_counter() - middle - judging)
        bare.append(middle - began)
    # The first of each is a warm-up.
    one, other = (1000 * statistics.median(times[1:]) for times in (bare, wrapped))
    row = {"bare_ms": one, "wrapped_ms": other, "overhead_ms": other - one}
    print(json.dumps({**row, "overhead_share": other / one - 1, "runs": options.runs}))


if __name__ == "__main__":
    main()
