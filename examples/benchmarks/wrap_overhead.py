"""The cost of wrapping: best-of-1 of a wrapped pipeline against the bare one, in milliseconds.

    python examples/benchmarks/wrap_overhead.py --runs 20

The pipeline is the bundled one; the verifier is a fake, whose own time is subtracted. Runs of the
two alternate, because a busy machine should slow both. The script prints one line of JSON.
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
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    call: dict[str, Any] = dict(BUNDLED_CALL) if args.model == "shapes" else {}
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(1))
    bare, wrapped = [], []
    for seed in range(args.runs + 1):
        began = time.perf_counter()
        pipe("a red circle", generator=torch.Generator().manual_seed(seed), **call)
        middle = time.perf_counter()
        out = verified("a red circle", seed=seed, **call)
        verifying = sum(trial.cost.verify_seconds for trial in out.trials)
        wrapped.append(time.perf_counter() - middle - verifying)
        bare.append(middle - began)
    # The first run of each is a warm-up.
    bare_ms, wrapped_ms = (1000 * statistics.median(times[1:]) for times in (bare, wrapped))
    row = {"bare_ms": bare_ms, "wrapped_ms": wrapped_ms, "overhead_ms": wrapped_ms - bare_ms}
    print(json.dumps({**row, "overhead_share": wrapped_ms / bare_ms - 1, "runs": args.runs}))


if __name__ == "__main__":
    main()
