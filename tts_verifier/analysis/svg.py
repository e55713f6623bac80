"""Small charts as SVG text: lines with bands, points and histograms, without a plotting library.

Screen readers hear the title and where each series begins and ends. For values under the mouse, the
charts of a page carry the ranges of their axes, and every series its name (`data-…`).

Colours come from CSS: `STYLE` has them for light and dark. A page puts the style into its head
once; `standalone_svg` makes a file of its own. Every label is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape as escape_html
from statistics import fmean
from typing import Final

from tts_verifier.errors import printable

Point = tuple[float, float]

STYLE: Final = """
.chart{--ink:#1d2430;--dim:#667085;--grid:#e4e7ec;--s0:#3354d1;--s1:#b4540a;--s2:#0d7a5f;
--s3:#8a3ab9;font:12px system-ui,sans-serif}
.chart text{fill:var(--dim)}.chart .title{fill:var(--ink);font-size:13px;font-weight:600}
.chart .xs{text-anchor:middle}.chart .ys,.chart .xt{text-anchor:end}
.chart .grid{fill:none;stroke:var(--grid)}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}
.chart .pale{stroke-width:1;opacity:.45}
.chart .band{opacity:.15;stroke:none}.chart .bar{fill-opacity:.3;stroke-width:1.5}
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
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 14.0, 42.0, 56.0


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
    """The title of the x axis, with its unit."""
    series: Sequence[Series] = field(default_factory=tuple)
    marks: Sequence[float] = ()
    """Values of x that a vertical line marks; finite."""
    y: str = ""
    """The title of the y axis, with its unit."""


def line_chart(chart: Chart) -> str:
    """Returns the chart as an `<svg>` element; a series without a finite point is left out."""
    series = [s for s in chart.series if any(map(_finite, s.points))]
    points = [p for s in series for p in s.points if _finite(p)]
    heights = [y for _, y in points] + [y for s in series for b in s.band for y in b]
    across = [*(x for x, _ in points), *chart.marks]
    area = _PlotArea.around(across, [y for y in heights if math.isfinite(y)])
    body = [area.axes(chart), area.marks(chart.marks)]
    body += [area.series(one, i % _SERIES_COLOURS) for i, one in enumerate(series)]
    return _svg(chart, area, [*body, _legend([one.name for one in series])], _ends(series))


def histogram(chart: Chart, bins: int = 16) -> str:
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
    width = (high - low) / bins
    for i, (name, row) in enumerate(shares.items()):
        steps = [(low, 0.0)]
        for j, share in enumerate(row):
            steps += [(low + j * width, share), (low + (j + 1) * width, share)]
        outline = _svg_points([area.at(*step) for step in [*steps, (high, 0.0)]])
        looks = f"bar {_colours(i % _SERIES_COLOURS)}"
        body.append(f'<polygon points="{outline}" class="{looks}" {_named(name)}/>')
    said = [f"{name}: {_spread(xs)}" for name, xs in values.items()]
    return _svg(chart, area, [*body, _legend(list(shares))], said)


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
        bottom = _HEIGHT - _BOTTOM
        downs = [(y, self.at(self.x1, y)[1]) for y in ticks(self.y1, self.y2)]
        acrosses = [(x, self.at(x, self.y1)[0]) for x in ticks(self.x1, self.x2)]
        grid = "".join(f"M{self.left:g} {round(down, 1):g}H{self.right:g}" for _, down in downs)
        left = "".join(
            f'<text x="{self.left - 6:g}" y="{down + 4:.1f}">{y:g}</text>' for y, down in downs
        )
        below = "".join(
            f'<text x="{across:.1f}" y="{bottom + 14:g}">{x:g}</text>' for x, across in acrosses
        )
        name = f'<text x="8" y="31">{escape(chart.y)}</text>' if chart.y else ""
        return (
            f'<text x="8" y="16" class="title">{escape(chart.title)}</text>{name}'
            f'<path d="{grid}" class="grid"/><g class="ys">{left}</g><g class="xs">{below}</g>'
            f'<text x="{self.right:g}" y="{bottom + 28:g}" class="xt">{escape(chart.x)}</text>'
        )

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
            line = f'points="{_svg_points(places)}" class="{looks}" {_named(one.name)}'
            parts.append(f"<polyline {line}/>")
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
    """Returns a path's points; those on a level between two neighbours are left out."""
    places = [(round(x, 1), round(y, 1)) for x, y in points]
    kept = [
        (x, y)
        for i, (x, y) in enumerate(places)
        if not 0 < i < len(places) - 1 or not places[i - 1][1] == y == places[i + 1][1]
    ]
    return " ".join(f"{x:g},{y:g}" for x, y in kept)


def _colours(number: int) -> str:
    return f"c{number} f{number}"


def _named(name: str) -> str:
    return f'data-name="{escape(name)}"'


def _legend(names: Sequence[str]) -> str:
    parts, left = [], 12.0
    for i, whole in enumerate(names):
        name = whole
        if len(name) > _LEGEND_CHARACTERS:
            name = name[: _LEGEND_CHARACTERS - 1] + "…"
        dot = f'cx="{left:.0f}" cy="{_HEIGHT - 12:.0f}" r="4" class="f{i % _SERIES_COLOURS}"'
        parts.append(
            f'<circle {dot}/><text x="{left + 8:.0f}" y="{_HEIGHT - 8:.0f}">{escape(name)}</text>'
        )
        left += 26 + 6.5 * len(name)
    return "".join(parts)


def _ends(series: Sequence[Series]) -> list[str]:
    """Returns in words where each series begins and ends."""
    said = []
    for one in series:
        points = [p for p in one.points if _finite(p)]
        (x1, y1), (x2, y2) = points[0], points[-1]
        said.append(f"{one.name}: {y1:.4g} at {x1:.4g}, {y2:.4g} at {x2:.4g}")
    return said


def _spread(values: Sequence[float]) -> str:
    """Returns in words where values lie."""
    if not values:
        return "none"
    return f"{len(values)} from {min(values):.4g} to {max(values):.4g}, mean {fmean(values):.4g}"


def _svg(chart: Chart, area: _PlotArea, body: Sequence[str], said: Sequence[str]) -> str:
    about = "; ".join([f"by {chart.x}", *said] if chart.x else said)
    edges = (area.left, area.right, _TOP, _HEIGHT - _BOTTOM, area.x1, area.x2, area.y1, area.y2)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'data-area="{" ".join(f"{edge:.6g}" for edge in edges)}" data-x="{escape(chart.x)}" '
        f'aria-label="{escape(chart.title)}"><desc>{escape(about)}</desc>{"".join(body)}</svg>'
    )
