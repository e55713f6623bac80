"""Pieces of HTML that a report has a hundred thousand times.

As parts of the templates they would take most of the time of a large report. Text is escaped
here; everything else is a number or an address of `sources`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from tts_verifier.analysis.report.sources import ShownImage

if TYPE_CHECKING:
    from markupsafe import Markup

    from tts_verifier.analysis.report.cards import Card
    from tts_verifier.types import Trial


def picture(image: ShownImage | None, label: str) -> Markup:
    """Returns a button with an image and its overlays.

    Args:
        image: None if there is none.
        label: what is seen.
    """
    from markupsafe import Markup, escape

    if image is None:
        return Markup('<div class="pic none">no image</div>\n')
    size = f'width="{image.width:d}" height="{image.height:d}"'
    parts = [
        '<button class="pic">'
        f'<img loading="lazy" src="{escape(image.source)}" {size} alt="{escape(label)}">'
    ]
    for layer in image.layers:
        if not layer.flaw:
            word = f"no {escape(layer.name)}"
            parts.append(f'<span class="ov word m{layer.number:d}">{word}</span>')
            continue
        style = f' style="{layer.place}"' if layer.place else ""
        source = escape(layer.source)
        parts.append(
            f'<img class="ov m{layer.number:d}" loading="lazy" src="{source}" alt=""{style}>'
        )
    if image.boxes:
        boxes = "".join(
            f'<rect x="{x:.4g}" y="{y:.4g}" width="{width:.4g}" height="{height:.4g}"/>'
            for x, y, width, height in image.boxes
        )
        view = f'viewBox="0 0 {image.width:d} {image.height:d}"'
        parts.append(f'<svg class="ov bx" {view} aria-hidden="true">{boxes}</svg>')
    parts.append("</button>\n")
    return Markup("".join(parts))


def thumb(image: ShownImage | None, label: str) -> Markup:
    """Returns an image without overlays, as a part of a link."""
    from markupsafe import Markup, escape

    if image is None:
        return Markup('<span class="pic none">no image</span>')
    size = f'width="{image.width:d}" height="{image.height:d}"'
    return Markup(f'<img loading="lazy" src="{escape(image.source)}" {size} alt="{escape(label)}">')


def judge_tag(trial: Trial) -> Markup:
    """Returns whether the held-out judge passed a trial; nothing if it was not asked."""
    from markupsafe import Markup

    passed = trial.judge.get("passed", math.nan)
    if not math.isfinite(passed):
        return Markup("")
    kind, word = ("good", "passed") if passed >= 1 else ("bad", "failed")
    return Markup(f'<span class="tag {kind}">judge: {word}</span>')


def sheet_entry(card: Card) -> Markup:
    """Returns a candidate's image with its overlays, and the line below it."""
    from markupsafe import Markup

    tags = [
        f' <span class="tag{kind}">{word}</span>'
        for holds, kind, word in (
            (card.chosen, " pick", "chosen"),
            (card.first, "", "first"),
            (card.looked_at, "", "looked at again"),
        )
        if holds
    ]
    objective = format_number(card.trial.objective)
    shown = picture(card.image, f"Candidate {card.number:d}, objective {objective}")
    return Markup(
        f'{shown}<p class="cap"><b>{objective}</b> #{card.number:d}{"".join(tags)} '
        f"{judge_tag(card.trial)}</p>"
    )


def facts(card: Card) -> Markup:
    """Returns the scores of a candidate as a list, and how it was made."""
    from markupsafe import Markup, escape

    trial = card.trial
    named = [*trial.scores.items(), *((f"judge: {n}", v) for n, v in trial.judge.items())]
    scores = "".join(f"<dt>{_escaped(name)}<dd>{format_number(value)}" for name, value in named)
    return Markup(
        f'<dl class="small">{scores}</dl><p class="tiny">{escape(card.origin)}; '
        f"{trial.cost.network_evaluations} evaluations, {trial.cost.seconds:.2f} s; "
        f"trial {escape(trial.id)}</p>"
    )


@lru_cache(maxsize=256)
def _escaped(name: str) -> str:
    """Returns the name of a score as HTML; a report has few."""
    from markupsafe import escape

    return str(escape(name))


def format_number(value: float) -> str:
    """Returns three decimals, or a dash if the value is not known."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def format_signed(value: float) -> str:
    """Returns three decimals with a sign, or a dash if the value is not known."""
    return f"{value:+.3f}" if math.isfinite(value) else "–"


def format_percent(value: float) -> str:
    """Returns a share in percent, or a dash if the value is not known."""
    return f"{value:.1%}" if math.isfinite(value) else "–"


def format_figure(value: float) -> str:
    """Returns four digits of a number of any size, or a dash if it is not known."""
    return f"{value:.4g}" if math.isfinite(value) else "–"


def format_duration(seconds: float) -> str:
    """Returns seconds below two minutes, else minutes, from two hours on hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
