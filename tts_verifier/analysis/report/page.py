"""The whole page: reads the logs, makes the views, fills the templates.

The page loads nothing from outside. Its content security policy allows one script only, by its
hash, so that text with a script in it cannot run even if the escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import yaml

from tts_verifier.analysis.report.cards import PromptView, prompt_view
from tts_verifier.analysis.report.figures import (
    CategoryFigures,
    PairedDifference,
    SearchState,
    categories,
    cost_table,
    main_judge_score,
    paired_difference,
    progress_charts,
    score_histograms,
    search_states,
)
from tts_verifier.analysis.report.sources import InlineThumbnails, LinkedFiles, Source
from tts_verifier.analysis.svg import STYLE
from tts_verifier.choice.summary import Summary, summarise, summarise_prompt, wilson
from tts_verifier.errors import InputError, RunError
from tts_verifier.log import is_running, read_header, read_trials
from tts_verifier.types import Cost, Trial

TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as the page shows it."""

    name: str
    """The folder's name."""
    anchor: str
    """Its id in the page."""
    running: bool
    """True if the run has not finished."""
    summary: Summary
    judge: str | None
    """The judge's main score; None without a judge."""
    prompts: tuple[PromptView, ...]
    states: tuple[tuple[SearchState, ...], ...]
    """The states of each prompt's search."""
    categories: tuple[CategoryFigures, ...]
    histograms: tuple[str, ...]
    """SVG, one per score."""
    costs: tuple[tuple[str, int, Cost], ...]
    """(kind of proposal, trials, cost); the last one is the sum."""
    recipe: str
    """YAML."""
    provenance: tuple[tuple[str, str], ...]
    """Device and versions: (name, value)."""

    def chosen(self, measure: str) -> dict[str, float]:
        """Returns prompt text -> the chosen image's objective, or a score of the judge.

        Args:
            measure: "objective", or the name of the judge's score.
        """
        picks = [(r.prompt.text, r.chosen) for r in self.summary.prompts if r.chosen]
        if measure == "objective":
            return {text: pick.objective for text, pick in picks}
        return {text: pick.judge.get(measure, math.nan) for text, pick in picks}


def write_report(folders: Sequence[Path], path: Path, *, inline: bool = False) -> None:
    """Writes one HTML page about run folders, finished or still running.

    Args:
        folders: the runs; the others are compared with the first.
        path: of the page.
        inline: put thumbnails into the page instead of links to the runs' files.

    Raises:
        RunError: a folder is not a run folder, or the page cannot be written.
        InputError: there is nothing to show, or jinja2 is missing.
    """
    if find_spec("jinja2") is None:
        raise InputError("Reports need jinja2. Install it: pip install 'tts-verifier[reports]'.")
    logs = [(folder, read_header(folder), read_trials(folder)) for folder in folders]
    names = dict.fromkeys(
        name for _, _, trials in logs for t in trials if t.verdict for name in t.verdict.heatmaps
    )
    kinds = {name: i for i, name in enumerate(names)}
    runs = []
    for i, (folder, header, trials) in enumerate(logs):
        if not trials:
            raise InputError(f"{folder} has no verified candidate yet. Report on it later.")
        source = InlineThumbnails(folder, trials) if inline else LinkedFiles(folder, path)
        runs.append(_run_view(folder, f"r{i}", header, trials, source=source, kinds=kinds))
    page = _render_page(runs, kinds)
    # Renaming replaces a page that a browser may be reading in one step.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(page, "utf-8")
        draft.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}. Give another with --output.") from error


def _run_view(
    folder: Path,
    anchor: str,
    header: Mapping[str, Any],
    trials: Sequence[Trial],
    *,
    source: Source,
    kinds: Mapping[str, int],
) -> RunView:
    by_prompt: dict[str, list[Trial]] = {}
    for trial in trials:
        by_prompt.setdefault(trial.prompt.id, []).append(trial)
    summary = summarise([summarise_prompt(some[0].prompt, some) for some in by_prompt.values()])
    views = [
        prompt_view(f"{anchor}p{i}", some, source=source, kinds=kinds)
        for i, some in enumerate(by_prompt.values())
    ]
    about, judge = header["about"], main_judge_score(trials)
    return RunView(
        name=folder.resolve().name,
        anchor=anchor,
        running=is_running(folder),
        summary=summary,
        judge=judge,
        prompts=tuple(views),
        states=tuple(tuple(search_states(some)) for some in by_prompt.values()),
        categories=tuple(categories(summary, judge)),
        histograms=tuple(score_histograms(trials, summary)),
        costs=tuple(cost_table(trials)),
        recipe=yaml.safe_dump(about.get("recipe") or about, sort_keys=False, allow_unicode=True),
        provenance=_provenance(header),
    )


def _provenance(header: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    values = {
        "device": header.get("device"),
        "git revision": header.get("git_revision"),
        "python": header.get("python"),
        **header.get("versions", {}),
    }
    return tuple((name, str(value)) for name, value in values.items() if value)


def _comparisons(runs: Sequence[RunView]) -> list[tuple[RunView, list[PairedDifference]]]:
    """Returns every run but the first, with its differences from the first."""
    measures = ["objective"]
    if runs[0].judge is not None:
        measures.append(runs[0].judge)
    return [
        (run, [paired_difference(m, run.chosen(m), runs[0].chosen(m)) for m in measures])
        for run in runs[1:]
    ]


def _side_by_side(runs: Sequence[RunView]) -> list[tuple[str, list[PromptView | None]]]:
    """Returns every prompt that at least two runs have, with the view of each run."""
    by_text = [{view.prompt.text: view for view in run.prompts} for run in runs]
    texts = dict.fromkeys(text for views in by_text for text in views)
    rows = [(text, [views.get(text) for views in by_text]) for text in texts]
    return [row for row in rows if len(row[1]) - row[1].count(None) > 1]


def _render_page(runs: Sequence[RunView], kinds: Mapping[str, int]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "signed": format_signed,
        "percent": format_percent,
    }
    environment.tests["finite"] = math.isfinite
    script = (TEMPLATES / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [run.name for run in runs]
    # Folders of different parents may have the same name.
    labels = [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]
    replies: dict[str, int] = {}
    text: str = environment.get_template("page.html").render(
        runs=list(zip(labels, runs, strict=True)),
        charts=[
            Markup(chart)
            for chart in progress_charts(
                {n: r.states for n, r in zip(labels, runs, strict=True)}, runs[0].judge
            )
        ],
        comparisons=_comparisons(runs),
        side_by_side=_side_by_side(runs),
        kinds=kinds,
        # Replies are many and alike: the page has each once, compressed.
        reply_number=lambda text: replies.setdefault(text, len(replies)),
        replies=lambda: _compressed(list(replies)),
        safe=Markup,
        style=Markup(STYLE + (TEMPLATES / "page.css").read_text("utf-8")),
        script=Markup(script),
        digest=digest,
        interval=wilson,
        nan=math.nan,
    )
    return text


def _compressed(texts: Sequence[str]) -> str:
    """Returns texts as a JSON list, deflated, in base64."""
    return base64.b64encode(zlib.compress(json.dumps(texts).encode(), 9)).decode()


def format_number(value: float) -> str:
    """Returns three decimals, or a dash if the value is not known."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def format_signed(value: float) -> str:
    """Returns three decimals with a sign, or a dash if the value is not known."""
    return f"{value:+.3f}" if math.isfinite(value) else "–"


def format_percent(value: float) -> str:
    """Returns a share in percent, or a dash if the value is not known."""
    return f"{value:.1%}" if math.isfinite(value) else "–"
