"""Small charts as SVG text: lines with bands, points and histograms, without a plotting library.

Colours come from CSS: `STYLE` has them for light and dark. A page puts the style into its head
once; `standalone_svg` makes a file of its own. Every label is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape as escape_html
from typing import Final

from tts_verifier.errors import printable

Point = tuple[float, float]

STYLE: Final = """
.chart{--ink:#1d2430;--dim:#667085;--grid:#e4e7ec;--s0:#3354d1;--s1:#b4540a;--s2:#0d7a5f;
--s3:#8a3ab9;font:12px system-ui,sans-serif}
.chart text{fill:var(--dim)}.chart .title{fill:var(--ink);font-size:13px;font-weight:600}
.chart .grid{stroke:var(--grid)}.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}
.chart .pale{stroke-width:1;opacity:.45}
.chart .band{opacity:.15;stroke:none}.chart .bar{opacity:.85}
.chart .c0{stroke:var(--s0)}.chart .c1{stroke:var(--s1)}.chart .c2{stroke:var(--s2)}
.chart .c3{stroke:var(--s3)}.chart .f0{fill:var(--s0)}.chart .f1{fill:var(--s1)}
.chart .f2{fill:var(--s2)}.chart .f3{fill:var(--s3)}
.chart .mark{stroke:#d92d20;stroke-width:1.5}
@media (prefers-color-scheme:dark){.chart{--ink:#eef1f6;--dim:#9aa5b8;--grid:#2c3444;
--s0:#8ea6ff;--s1:#f0a35e;--s2:#5fcfae;--s3:#cf97f2}}
"""
_SERIES_COLOURS: Final = 4
"""Colours in `STYLE`; further series use them again."""
_LEGEND_CHARACTERS: Final = 22
"""Longest name of a series in the legend."""
_WIDTH, _HEIGHT = 440.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 14.0, 32.0, 56.0


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a chart."""

    name: str
    points: Sequence[Point]
    """(x, y); points that are not finite are left out."""
    band: Sequence[Point] = ()
    """(low, high) at every point; empty = no band."""
    dots: bool = False
    """True = points without a line."""
    pale: bool = False
    """True = a thin pale line, for values behind a smoother series."""


@dataclass(frozen=True, slots=True)
class Chart:
    """The content of a chart."""

    title: str
    x: str
    """The title of the x axis."""
    series: Sequence[Series] = field(default_factory=tuple)
    marks: Sequence[float] = ()
    """Values of x that a vertical line marks; finite."""


def line_chart(chart: Chart) -> str:
    """Returns the chart as an `<svg>` element; a series without a finite point is left out."""
    series = [s for s in chart.series if any(map(_finite, s.points))]
    points = [p for s in series for p in s.points if _finite(p)]
    heights = [y for _, y in points] + [y for s in series for b in s.band for y in b]
    across = [*(x for x, _ in points), *chart.marks]
    area = _PlotArea.around(across, [y for y in heights if math.isfinite(y)])
    body, left = [area.axes(chart), area.marks(chart.marks)], 12.0
    for i, one in enumerate(series):
        colour, name = i % _SERIES_COLOURS, one.name
        if len(name) > _LEGEND_CHARACTERS:
            name = name[: _LEGEND_CHARACTERS - 1] + "…"
        body.append(area.series(one, colour))
        body.append(
            f'<circle cx="{left:.0f}" cy="{_HEIGHT - 12:.0f}" r="4" class="f{colour}"/>'
            f'<text x="{left + 8:.0f}" y="{_HEIGHT - 8:.0f}">{escape(name)}</text>'
        )
        left += 26 + 6.5 * len(name)
    return _svg(chart.title, body)


def histogram(chart: Chart, bins: int = 20) -> str:
    """Returns a histogram of the x values of every series, as shares of the series."""
    values = {s.name: [x for x, _ in s.points if math.isfinite(x)] for s in chart.series}
    everything = [x for xs in values.values() for x in xs]
    low, high = _value_range(everything)
    shares = {}
    for name, xs in values.items():
        counts = [0] * bins
        for x in xs:
            counts[min(int((x - low) / (high - low) * bins), bins - 1)] += 1
        shares[name] = [c / max(len(xs), 1) for c in counts]
    top = max((s for row in shares.values() for s in row), default=1.0) or 1.0
    area = _PlotArea(low, high, 0.0, top)
    body = [area.axes(chart)]
    width = (high - low) / bins / max(len(shares), 1)
    for i, row in enumerate(shares.values()):
        for j, share in enumerate(row):
            left = low + (j * len(shares) + i) * width
            (x1, y1), (x2, y2) = area.at(left, share), area.at(left + width, 0)
            if share:
                body.append(
                    f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1 - 0.5:.1f}" '
                    f'height="{y2 - y1:.1f}" class="bar f{i % _SERIES_COLOURS}"/>'
                )
    return _svg(chart.title, body)


def standalone_svg(charts: Sequence[str], title: str) -> str:
    """Returns charts, one below another, as the text of one SVG file."""
    size = f'width="{_WIDTH:.0f}"'
    rows = "".join(
        chart.replace("<svg ", f'<svg y="{i * _HEIGHT:.0f}" {size} height="{_HEIGHT:.0f}" ', 1)
        for i, chart in enumerate(charts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
        f'height="{len(charts) * _HEIGHT:.0f}"><title>{escape(title)}</title><style>{STYLE}'
        "svg{background:#fff}@media (prefers-color-scheme:dark){svg{background:#12161f}}"
        f"</style>{rows}</svg>\n"
    )


@dataclass(frozen=True, slots=True)
class _PlotArea:
    """The part of a chart that has the data; maps values to coordinates of the SVG."""

    x1: float
    x2: float
    y1: float
    y2: float
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float]) -> _PlotArea:
        y1, y2 = _value_range(ys)
        # A margin keeps the highest and lowest points off the border.
        edge = (y2 - y1) * 0.06
        return cls(*_value_range(xs), y1 - edge, y2 + edge)

    def at(self, x: float, y: float) -> Point:
        across = self.left + (x - self.x1) / (self.x2 - self.x1) * (self.right - self.left)
        down = _TOP + (self.y2 - y) / (self.y2 - self.y1) * (_HEIGHT - _TOP - _BOTTOM)
        return across, down

    def axes(self, chart: Chart) -> str:
        parts = [f'<text x="8" y="16" class="title">{escape(chart.title)}</text>']
        for y in ticks(self.y1, self.y2):
            _, down = self.at(self.x1, y)
            parts.append(
                f'<line x1="{self.left}" x2="{self.right}" y1="{down:.1f}" y2="{down:.1f}" '
                f'class="grid"/><text x="{self.left - 6}" y="{down + 4:.1f}" '
                f'text-anchor="end">{y:g}</text>'
            )
        for x in ticks(self.x1, self.x2):
            across, _ = self.at(x, self.y1)
            parts.append(
                f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 14}" '
                f'text-anchor="middle">{x:g}</text>'
            )
        parts.append(
            f'<text x="{self.right}" y="{_HEIGHT - _BOTTOM + 28:.0f}" text-anchor="end">'
            f"{escape(chart.x)}</text>"
        )
        return "".join(parts)

    def marks(self, xs: Sequence[float]) -> str:
        places = [self.at(x, self.y1)[0] for x in xs]
        return "".join(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:.0f}" y2="{_HEIGHT - _BOTTOM:.0f}" '
            'class="mark"/>'
            for x in places
        )

    def series(self, one: Series, colour: int) -> str:
        places = [self.at(*p) for p in one.points if _finite(p)]
        parts = []
        if one.band:
            pairs = list(zip(one.points, one.band, strict=True))
            edge = [self.at(x, b[1]) for (x, _), b in pairs if _finite(b)]
            edge += [self.at(x, b[0]) for (x, _), b in reversed(pairs) if _finite(b)]
            parts.append(f'<polygon points="{_svg_points(edge)}" class="band f{colour}"/>')
        if not one.dots:
            looks = f"line pale c{colour}" if one.pale else f"line c{colour}"
            parts.append(f'<polyline points="{_svg_points(places)}" class="{looks}"/>')
        # Circles of a long series would merge into a thick line.
        if one.dots or len(places) <= 32:
            size = 4 if one.dots else 1.5 if one.pale else 2.5
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" class="f{colour}"/>'
                for x, y in places
            ]
        return "".join(parts)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers within [low, high], about `about` of them."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # As many digits as tell them apart: a learning rate is as small as 1e-9.
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def escape(text: str) -> str:
    """Returns text as SVG has it: a file with control characters would not be XML."""
    return escape_html(printable(text))


def _value_range(values: Sequence[float]) -> Point:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _finite(point: Point) -> bool:
    return all(map(math.isfinite, point))


def _svg_points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(title: str, body: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(body)}</svg>'
    )
