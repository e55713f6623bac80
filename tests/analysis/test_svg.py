"""Charts: valid SVG with escaped text and round ticks."""

import math
from xml.etree import ElementTree

from tts_verifier.analysis.svg import Chart, Series, histogram, line_chart, ticks


def test_charts_escape_text_and_allow_empty_series() -> None:
    series = [Series("<b>", [(1.0, math.nan)]), Series("<i>", [(1.0, 2.0)], [(2.0, 2.0)])]
    shown = line_chart(Chart("<script>", "<x>", series))
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    assert "<b>" not in shown
    for chart in (shown, line_chart(Chart("t", "x")), histogram(Chart("t", "x", series))):
        assert "nan" not in ElementTree.tostring(ElementTree.fromstring(chart)).decode()


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.97, 8.1) == [2, 4, 6, 8]
