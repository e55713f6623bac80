"""A replay as text for a terminal, and as charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tts_verifier.analysis.expected_best import Estimate
from tts_verifier.analysis.replay import Replay
from tts_verifier.analysis.svg import Chart, Series, line_chart, standalone_svg
from tts_verifier.analysis.whole_files import write_whole
from tts_verifier.choice.summary import LEAST_PROMPTS
from tts_verifier.choice.summary_output import aligned_columns


def replay_text(result: Replay) -> str:
    """Returns the notes and tables of a replay."""
    interval = " [95 % bootstrap]" if result.prompts >= LEAST_PROMPTS else ""
    text = [*_notes(result), "", f"best of n, mean over prompts{interval}"]
    text += aligned_columns(_best_of_n_table(result))
    if result.stopping:
        title = "one by one until the objective reaches a threshold, the thresholds from this log"
        text += ["", title, *aligned_columns(_stopping_table(result))]
    if result.pruning:
        title = "all draws up to a preview, then the best share of them to the end"
        text += ["", title, *aligned_columns(_pruning_table(result))]
    if result.schedules:
        title = (
            f"schedules picked by {result.searched} on half of the prompts, figures of the others; "
            "`keep` of successive_halving"
        )
        text += ["", title, *aligned_columns(_schedule_table(result))]
    return "\n".join(text)


def write_plot(result: Replay, path: Path) -> None:
    """Writes the charts of a replay as one SVG file.

    Raises:
        RunError: the file cannot be written.
    """
    write_whole(path, standalone_svg(_replay_charts(result), "Expected best of n"), "--plot")


def _notes(result: Replay) -> list[str]:
    """Returns the lines about what the figures are based on."""
    head = f"{result.prompts} prompts, the best of 1 to {result.candidates} draws each"
    notes = [head + (f", {result.failed} draws failed" if result.failed else "")]
    if result.left_out:
        notes.append(f"left out: {result.left_out} trials that are not independent whole draws")
    if result.looks:
        notes.append(
            f"{result.looks} looks or comparisons: the run chose by them, the best of n here is "
            "that of the scores before"
        )
    notes.append(
        f"ties: {result.tied} draws share their objective with another of the prompt, "
        f"{result.tied_best} prompts share the best; the choice is shared evenly among them"
    )
    partial = [f"{c.name} from {c.prompts}" for c in result.curves if c.prompts < result.prompts]
    if partial:
        notes.append(f"prompts with a value for every usable draw: {', '.join(partial)}")
    return notes


def _best_of_n_table(result: Replay) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [["n", "evaluations", "seconds", *_measures(result)]]
    for n in range(1, result.candidates + 1):
        values = [_figure(c.values[n - 1], result) for c in result.curves]
        rows.append([str(n), *_cost(result, n), *values])
    return rows


def _stopping_table(result: Replay) -> list[Sequence[str]]:
    names = _measures(result)
    rows: list[Sequence[str]] = [["stop at", "draws", "evaluations", "seconds", *names]]
    for stop in result.stopping:
        mean = stop.candidates.mean
        values = [_figure(stop.values[name], result) for name in names]
        rows.append([f"{stop.threshold:.3f}", f"{mean:.2f}", *_cost(result, mean), *values])
    return rows


def _pruning_table(result: Replay) -> list[Sequence[str]]:
    names = _measures(result)
    rows: list[Sequence[str]] = [
        ["preview at", "kept", "agreement", "evaluations", "seconds", *names]
    ]
    for outcome in result.pruning:
        cost = [f"{outcome.evaluations:.0f}", f"{outcome.seconds:.2f}"]
        values = [_figure(outcome.values[name], result) for name in names]
        share = f"{outcome.share:.3g}"
        rows.append([f"{outcome.stop:.0%}", share, f"{outcome.agreement:.2f}", *cost, *values])
    return rows


def _schedule_table(result: Replay) -> list[Sequence[str]]:
    gain = "over best of n at equal evaluations"
    rows: list[Sequence[str]] = [
        ["draws", "go on", "keep", "evaluations", "seconds", result.searched, gain]
    ]
    for outcome in result.schedules:
        pairs = zip(outcome.counts[1:], outcome.stops, strict=True)
        left = ", ".join(f"{count} at {stop:.0%}" for count, stop in pairs)
        keep = f"[{', '.join(f'{share:g}' for share in outcome.keep)}]"
        cost = [f"{outcome.evaluations:.0f}", f"{outcome.seconds:.2f}"]
        figures = [_figure(outcome.value, result), _figure(outcome.gain, result)]
        rows.append([str(outcome.counts[0]), left, keep, *cost, *figures])
    return rows


def _measures(result: Replay) -> list[str]:
    return [curve.name for curve in result.curves]


def _cost(result: Replay, draws: float) -> list[str]:
    """Returns network evaluations and seconds of so many draws."""
    return [f"{draws * result.evaluations:.0f}", f"{draws * result.seconds:.2f}"]


def _figure(value: Estimate, result: Replay) -> str:
    """Returns a mean, and its interval where there are prompts enough for one."""
    if result.prompts < LEAST_PROMPTS:
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _replay_charts(result: Replay) -> list[str]:
    """Returns one chart per measure: the best of n, and where adaptive stopping ends."""
    charts = []
    for curve in result.curves:
        points = [(float(n), e.mean) for n, e in enumerate(curve.values, 1)]
        band = [(e.low, e.high) for e in curve.values]
        dots = [(s.candidates.mean, s.values[curve.name].mean) for s in result.stopping]
        series = [Series("best of n", points, band), Series("stop early", dots, dots=True)]
        charts.append(line_chart(Chart(f"Expected {curve.name}", "draws", series)))
    return charts
