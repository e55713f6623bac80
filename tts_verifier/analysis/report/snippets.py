"""Pieces of HTML that a report has a hundred thousand times.

As parts of the templates they would take most of the time of a large report. Text is escaped
here; everything else is a number or an address of `sources`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tts_verifier.analysis.report.sources import ShownImage

if TYPE_CHECKING:
    from markupsafe import Markup


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


def score_list(scores: Mapping[str, float], judge: Mapping[str, float]) -> Markup:
    """Returns the scores of a candidate as terms and values of a list."""
    from markupsafe import Markup, escape

    named = [*scores.items(), *((f"judge: {name}", value) for name, value in judge.items())]
    return Markup("".join(f"<dt>{escape(name)}<dd>{format_number(value)}" for name, value in named))


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
