"""The candidates of a search as HTML: pictures, scores, and maps under the mouse or the finger."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import Final

from PIL import Image

from tts_verifier.demo.search import Snapshot
from tts_verifier.types import Trial
from tts_verifier.types.score_names import written_scores

_SIDE: Final = 512
"""Pixels of a picture's longer side at most; the chosen one is shown whole beside them."""

_CANDIDATE_STYLE: Final = """<style>
.tts-grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(130px,1fr));gap:12px}
.tts-grid figure{margin:0;border:2px solid var(--border-color-primary);border-radius:8px;
overflow:hidden;color:var(--body-text-color)}
.tts-grid figure:focus-visible{outline:3px solid var(--color-accent)}
.tts-grid figure.best{border-color:var(--color-accent);box-shadow:0 0 0 2px var(--color-accent)}
.tts-pic{position:relative;aspect-ratio:var(--ratio,1);background:var(--background-fill-secondary)}
.tts-pic img{position:absolute;inset:0;width:100%;height:100%;object-fit:contain;margin:0}
.tts-pic .map{opacity:0;transition:opacity .15s}
.tts-pic:hover .map,figure:focus .map{opacity:1}
.tts-pic p{padding:8px;margin:0;font-size:13px;overflow:auto;height:100%}
.tts-grid figcaption{padding:6px 8px;font-size:13px}
.tts-grid figcaption b{font-size:16px}
.tts-grid mark{float:right;padding:1px 7px;border-radius:9px;background:#b45309;
color:#fff !important}
.tts-grid dl{display:grid;grid-template-columns:1fr auto;gap:0 8px;margin:4px 0 0}
.tts-grid dd{margin:0;text-align:right;font-variant-numeric:tabular-nums}
.tts-grid dt{overflow-wrap:anywhere}
.tts-grid pre{white-space:pre-wrap;font-size:12px;max-height:12em;overflow:auto}
</style>"""


class Page:
    """Turns snapshots into HTML; encodes each picture once.

    Belongs to one search, and to the thread that reads its snapshots.
    """

    def __init__(self) -> None:
        self._figures: dict[str, tuple[str, str]] = {}

    def html(self, now: Snapshot) -> str:
        """Returns the pictures in the order in which they were drawn, the best one marked."""
        word = "best so far" if now.doing else "chosen"
        figures = [
            self._figure(trial, number, word if trial.id == now.best else "")
            for number, trial in enumerate(now.candidates, 1)
        ]
        return f'{_CANDIDATE_STYLE}<div class="tts-grid">{"".join(figures)}</div>'

    def _figure(self, trial: Trial, number: int, mark: str) -> str:
        if trial.id not in self._figures:
            self._figures[trial.id] = (_picture(trial, number), _scores(trial))
        picture, scores = self._figures[trial.id]
        shown = f"<mark>{mark}</mark>" if mark else ""
        return (
            f'<figure tabindex="0" class="{"best" if mark else ""}">{picture}'
            f"<figcaption>{shown}<b>{_three_digits(trial.objective)}</b> #{number}{scores}"
            "</figcaption></figure>"
        )


def status(now: Snapshot, most: int) -> str:
    """Returns one line of plain text about a search.

    Args:
        now: what it has found.
        most: how many candidates it may draw.
    """
    count = len(now.candidates)
    by_id = {trial.id: trial for trial in now.candidates}
    if now.doing:
        doing = "loading" if now.doing == "load" else now.doing
        best = f", best {by_id[now.best].objective:.3f}" if now.best in by_id else ""
        return f"{doing} … {count} of at most {most} candidates{best}"
    said = [now.error] if now.error else []
    if now.best in by_id:
        # The first finished image, as `first_draw`: half an image does not compare.
        images = (t.objective for t in now.candidates if t.progress >= 1 and t.image)
        first, highest = next(images), by_id[now.best].objective
        said.append(f"The best of {count} has {highest:.3f}; the first has {_three_digits(first)}.")
    elif count:
        said.append(f"None of {count} candidates is usable; each one says why.")
    return " ".join(said)


def _picture(trial: Trial, number: int) -> str:
    if trial.image is None:
        return f'<div class="tts-pic"><p>{escape(trial.error or "no image")}</p></div>'
    image = trial.image.load()
    alt = f"candidate {number}, {_three_digits(trial.objective)}"
    shown = f'<img src="{_as_webp(image)}" alt="{alt}">'
    if trial.verdict is not None and (trial.verdict.heatmaps or trial.verdict.boxes):
        marked = _as_webp(trial.verdict.overlay(image))
        shown += f'<img class="map" src="{marked}" alt="flaws of candidate {number}">'
    ratio = f"{image.width}/{image.height}"
    return f'<div class="tts-pic" style="--ratio:{ratio}">{shown}</div>'


def _scores(trial: Trial) -> str:
    """Returns the scores, the judge's, and why or what the verifier said."""
    numbers = {
        **written_scores(trial.scores),
        **{f"judge: {name}": value for name, value in trial.judge.items()},
    }
    rows = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{_three_digits(value)}</dd>"
        for name, value in numbers.items()
    )
    text = trial.verdict.text if trial.verdict is not None else ""
    reply = f"<details><summary>reply</summary><pre>{escape(text)}</pre></details>" if text else ""
    failed = f"<p>{escape(trial.error)}</p>" if trial.error and trial.image is not None else ""
    return f"<dl>{rows}</dl>{failed}{reply}"


def _three_digits(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _as_webp(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
