"""Finds the campaigns, which are in examples/benchmarks/faults."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
