"""Files against one prompt: what `tts-score` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from tts_verifier import registry
from tts_verifier.objective import order
from tts_verifier.rows import number
from tts_verifier.seams import Verifier
from tts_verifier.types import Detail, Verdict

Scored = tuple[str, float, Verdict]
"""Path, objective, verdict."""


def load_verifier(name: str) -> Verifier:
    """Returns a verifier by its name in recipes, or as `Verifier.from_pretrained` loads it."""
    if name in registry.names("verifier") and name != "imagedoctor":
        verifier: Verifier = registry.builder("verifier", name)()
        return verifier
    return Verifier.from_pretrained(name)


def score_files(
    verifier: Verifier, paths: Sequence[str], prompt: str, *, detail: Detail = "diagnose"
) -> list[Scored]:
    """Returns path, objective and verdict of every file, best first.

    Raises:
        InputError: a file is no picture, or the prompt is empty.
    """
    verdicts = verifier.verify(paths, [prompt] * len(paths), detail=detail)
    values = [verifier.objective(verdict.scores) for verdict in verdicts]
    return [(paths[i], values[i], verdicts[i]) for i in order(values)]


def show(scored: Sequence[Scored], form: Literal["table", "jsonl"]) -> str:
    """Returns a table, or one line of JSON a file (a number that is NaN is null there)."""
    if form == "jsonl":
        return "\n".join(_json_line(*item) for item in scored)
    names = list(scored[0][2].scores)
    lines = [["image", "objective", *names]]
    for path, value, verdict in scored:
        numbers = [value, *(verdict.scores[name] for name in names)]
        lines.append([path, *(f"{v:.3f}" for v in numbers)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _json_line(path: str, objective: float, verdict: Verdict) -> str:
    fields = {
        "image": path,
        "objective": number(objective),
        **{name: number(value) for name, value in verdict.scores.items()},
        "boxes": verdict.boxes,
        "reply": verdict.text,
    }
    return json.dumps(fields, ensure_ascii=False)
