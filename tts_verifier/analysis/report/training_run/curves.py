"""A chart for each metric of a training run: every step in pale, and smoothed over its neighbours.

A long run has more steps than a chart has room for: neighbours are then drawn as their mean, with a
band from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from tts_verifier.analysis.report.training_run.stored import Values
from tts_verifier.analysis.svg import Chart, Point, Series, line_chart

POINTS: Final = 300
"""The most points of a curve."""
SMOOTHED_SHARE: Final = 15
"""A smoothed point is the mean over one part of so many, and at least over three points."""
OUTLYING: Final = 3.0
"""A value so many times as far out as the usual ones are from each other is cut off."""
FEW: Final = 30
"""Points of a curve that is drawn whole."""
SKIPPED: Final = "skipped"
"""The metric that says whether a step was skipped; it is marked in every chart."""
HEADLINES: Final = ("total", "reward", "plcc")
"""Metrics, or beginnings of their names, that the head of the page shows."""
MOST_CHARTS: Final = 120


@dataclass(frozen=True, slots=True, eq=False)
class MetricCurve:
    """A metric over the steps, at no more than POINTS places."""

    steps: Values
    """Means of the steps at each place."""
    values: Values
    """Means of the metric there."""
    low: Values
    high: Values
    each: int
    """Steps at a place, at most."""

    @property
    def is_flat(self) -> bool:
        """True if the metric does not change, as far as a chart could show."""
        return bool(np.ptp([self.low, self.high]) <= 1e-9 * np.abs(self.values).max())

    def smoothed(self) -> Values:
        """Returns the mean over the neighbours of each place; fewer at both ends."""
        width = 2 * max(1, len(self.values) // (2 * SMOOTHED_SHARE)) + 1
        window = np.ones(min(width, len(self.values)))
        counts = np.convolve(np.ones(len(self.values)), window, "same")
        means: Values = np.convolve(self.values, window, "same") / counts
        return means


@dataclass(frozen=True, slots=True)
class Curves:
    """What a page shows of all metrics."""

    charts: tuple[str, ...]
    """SVG."""
    constants: tuple[tuple[str, float], ...]
    """Metrics that do not change."""
    headlines: tuple[tuple[str, float, float], ...]
    """(metric, smoothed at the beginning, smoothed at the end)."""
    absent: tuple[str, ...]
    """Metrics without a finite value, and those beyond MOST_CHARTS."""
    skipped: int
    """Steps that were skipped."""


def curves_of(steps: Values, columns: Mapping[str, Values]) -> Curves:
    """Returns the charts of all metrics, those that do not change as numbers.

    Args:
        steps: rising.
        columns: metric -> its value at each step; NaN = none.
    """
    skipped = np.nan_to_num(columns.get(SKIPPED, np.zeros(len(steps)))) > 0
    marks = _thinned(steps[skipped])
    charts: list[str] = []
    constants: list[tuple[str, float]] = []
    headlines: list[tuple[str, float, float]] = []
    absent: list[str] = []
    for name, values in columns.items():
        curve = curve_of(steps, values) if name != SKIPPED else None
        if curve is None or len(charts) == MOST_CHARTS:
            absent += [name] if name != SKIPPED else []
        elif curve.is_flat:
            constants.append((name, float(curve.values[0])))
        else:
            charts.append(_chart(name, curve, marks))
            ends = curve.smoothed()[[0, -1]].tolist()
            headlines += [(name, *ends)] if name.startswith(HEADLINES) else []
    return Curves(
        tuple(charts), tuple(constants), tuple(headlines[:3]), tuple(absent), int(skipped.sum())
    )


def curve_of(steps: Values, values: Values) -> MetricCurve | None:
    """Returns the curve of a metric; None if it has no finite value."""
    there = np.isfinite(values)
    steps, values = steps[there], values[there]
    if not len(values):
        return None
    each = -(-len(values) // POINTS)
    starts = np.arange(0, len(values), each)
    counts = np.diff(np.append(starts, len(values)))
    return MetricCurve(
        np.add.reduceat(steps, starts) / counts,
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
        each,
    )


def _chart(name: str, curve: MetricCurve, marks: Values) -> str:
    raw = "each step" if curve.each == 1 else f"{curve.each} steps each"
    least, most = _range(curve)

    def within(values: Values) -> Values:
        return np.clip(values, least, most)

    band = [] if curve.each == 1 else _points(within(curve.low), within(curve.high))
    series = [
        Series(raw, _points(curve.steps, within(curve.values)), band, pale=True),
        Series("smoothed", _points(curve.steps, within(curve.smoothed()))),
    ]
    title = name if len(name) <= 40 else f"{name[:39]}…"
    if curve.high.max() > most:
        title += f", up to {curve.high.max():.3g}"
    if curve.low.min() < least:
        title += f", down to {curve.low.min():.3g}"
    return line_chart(Chart(title, "step", series, marks=marks.tolist()))


def _range(curve: MetricCurve) -> Point:
    """Returns the lowest and the highest value to draw: a single spike would flatten the rest."""
    low, high = float(np.quantile(curve.low, 0.01)), float(np.quantile(curve.high, 0.99))
    far, near = OUTLYING * (high - low), (high - low) / 4
    least, most = float(curve.low.min()), float(curve.high.max())
    if len(curve.values) < FEW or not near:
        return least, most
    return (low - near if least < low - far else least, high + near if most > high + far else most)


def _points(xs: Values, ys: Values) -> list[Point]:
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _thinned(steps: Values) -> Values:
    """Returns no more steps than a chart has room for."""
    return steps[:: -(-len(steps) // POINTS)] if len(steps) else steps
