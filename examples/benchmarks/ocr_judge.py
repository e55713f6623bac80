"""The OCR judge on texts drawn over photographs, right and with one wrong letter.

    python examples/benchmarks/ocr_judge.py ocr/cpu.parquet --count 520
    python examples/benchmarks/ocr_judge.py ocr/cpu.parquet --count 520 --minutes 5   # in pieces
    python examples/benchmarks/ocr_judge.py ocr/cpu.parquet --count 0 --page     # only the table

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
PAGE = HERE.parent.parent / "tts_verifier" / "verifiers" / "rules" / "OCR.md"
MARKERS = ("<!-- figures -->\n", "<!-- end -->")
"""The table stands between them."""
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


def share(name: str, goal: str, values: Sequence[bool]) -> str:
    """Returns a row of the table: a share, its interval and the goal."""
    rate, (low, high) = sum(values) / len(values), wilson(sum(values), len(values))
    return f"| {name} | {100 * rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}] | {goal} |"


def table(rows: Sequence[Row]) -> str:
    """Returns the figures of the rows as Markdown."""
    lines = [
        f"{len(rows)} texts, {2 * len(rows)} images:",
        "",
        "| figure | share [95 % Wilson] | goal |",
        "|---|---|---|",
        share("exact texts that score 0.95 or more", "95 %", [r["score"] >= 0.95 for r in rows]),
        share("exact texts with `text_exact` 1", "", [r["exact"] for r in rows]),
        share(
            "pairs in which the wrong text scores less than the exact one",
            "98 %",
            [r["wrong_score"] < r["score"] for r in rows],
        ),
        share("wrong texts with `text_exact` 1", "", [r["wrong_exact"] for r in rows]),
        share(
            "wrong texts with a box of overlap (IoU) 0.5 or more with the wrong word's ink",
            "90 %",
            [r["overlap"] >= 0.5 for r in rows],
        ),
        share("wrong texts with exactly one box", "", [r["boxes"] == 1 for r in rows]),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=520)
    parser.add_argument("--minutes", type=float, default=1e9, help="stops after this")
    parser.add_argument("--threads", type=int, help="of the CPU for one image")
    parser.add_argument("--page", action="store_true", help="writes the table into OCR.md")
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
    print(table(rows))
    seconds = sorted(r["seconds"] for r in rows)
    print(f"\nseconds an image, median: {seconds[len(seconds) // 2]:.2f}")
    if options.page:
        text = PAGE.read_text("utf-8")
        start, end = text.index(MARKERS[0]) + len(MARKERS[0]), text.index(MARKERS[1])
        PAGE.write_text(f"{text[:start]}{table(rows)}\n{text[end:]}", "utf-8")


if __name__ == "__main__":
    main()
