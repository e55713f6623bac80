"""The OCR judge on texts drawn over photographs, right and with one wrong letter.

    python examples/benchmarks/ocr_judge.py ocr/cpu.parquet --count 600
    python examples/benchmarks/ocr_judge.py ocr/cpu.parquet --count 600 --minutes 5   # in pieces
    python examples/benchmarks/ocr_judge.py ocr/cpu.parquet --count 0                 # figures only

The paths are relative to examples/benchmarks. For every number the judge reads two images of the
same photograph and layout: the text, and the text with one letter replaced. Rows that the file
holds are not computed again. Figures with 95 % Wilson intervals:

- exact texts that score at least 0.95;
- pairs in which the wrong text scores less than the exact one;
- wrong texts with a box whose overlap (intersection over union) with the wrong word's ink is at
  least 0.5.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from photo_texts import Scene, misspelt, render, scene
from pyarrow import parquet

from tts_verifier.choice import wilson
from tts_verifier.types import Box, Verdict
from tts_verifier.verifiers.rules import OCRVerifier

HERE = Path(__file__).parent
Row = dict[str, Any]


def overlap(one: Box, other: Box) -> float:
    """Returns the intersection over the union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return width * height / (sum(areas) - width * height)


def judged(judge: OCRVerifier, drawn: Scene, wanted: str) -> tuple[Verdict, Sequence[Box]]:
    """Returns the verdict on a scene, and the boxes of its words."""
    image, boxes = render(drawn)
    return judge.verify([image], [f'a photograph with the text "{wanted}"'])[0], boxes


def row(judge: OCRVerifier, number: int) -> Row:
    """Returns the row of a number."""
    right = scene(number)
    wrong = misspelt(right)
    began = time.perf_counter()
    good, _ = judged(judge, right, right.text)
    bad, boxes = judged(judge, wrong, right.text)
    truth = boxes[wrong.wrong]
    return {
        "number": number,
        "text": right.text,
        "wrong_text": wrong.text,
        "score": good.scores["text_match"],
        "exact": bool(good.scores["text_exact"]),
        "wrong_score": bad.scores["text_match"],
        "wrong_exact": bool(bad.scores["text_exact"]),
        "overlap": max((overlap(box, truth) for box in bad.boxes), default=0.0),
        "boxes": len(bad.boxes),
        "said": good.text,
        "wrong_said": bad.text,
        "seconds": (time.perf_counter() - began) / 2,
    }


def share(name: str, values: Sequence[bool]) -> str:
    """Returns a line with a share and its interval."""
    low, high = wilson(sum(values), len(values))
    return f"{name}: {sum(values) / len(values):.1%} [{low:.1%}, {high:.1%}] of {len(values)}"


def figures(rows: Sequence[Row]) -> str:
    """Returns the figures of the rows."""
    seconds = sorted(r["seconds"] for r in rows)
    return "\n".join(
        (
            share("exact texts at 0.95 or more", [r["score"] >= 0.95 for r in rows]),
            share("exact texts with the exact flag", [r["exact"] for r in rows]),
            share("wrong letter below exact", [r["wrong_score"] < r["score"] for r in rows]),
            share("wrong letter with the exact flag", [r["wrong_exact"] for r in rows]),
            share("box of the wrong word at 0.5 or more", [r["overlap"] >= 0.5 for r in rows]),
            share("only one box", [r["boxes"] == 1 for r in rows]),
            f"seconds an image, median: {seconds[len(seconds) // 2]:.2f}",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=1e9, help="stops after this")
    parser.add_argument("--threads", type=int, help="of the CPU for one image")
    options = parser.parse_args()
    path = HERE / options.out
    rows = parquet.read_table(path).to_pylist() if path.exists() else []
    done, start = {r["number"] for r in rows}, time.monotonic()
    missing = [n for n in range(options.count) if n not in done]
    judge = OCRVerifier(threads=options.threads) if missing else None
    for number in missing:
        if judge is None or time.monotonic() - start > 60 * options.minutes:
            break
        rows.append(row(judge, number))
    if not rows:
        parser.exit(1, f"{path} has no rows.\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    print(figures(rows))


if __name__ == "__main__":
    main()
