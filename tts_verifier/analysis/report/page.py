"""The whole page: reads the logs, makes the views, fills the templates.

The page asks for nothing from outside, and its content security policy says so: the only
script that may run is ours, by its hash, so that even text that slipped through stays text.
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

from tts_verifier.analysis.charts import STYLE
from tts_verifier.analysis.report.cards import PromptView, prompt_view
from tts_verifier.analysis.report.figures import (
    Category,
    Paired,
    Step,
    categories,
    costs,
    distributions,
    main_judge,
    paired,
    progress_charts,
    steps,
)
from tts_verifier.analysis.report.pictures import Inline, Linked
from tts_verifier.choice.summary import Summary, summarise, summarise_prompt, wilson
from tts_verifier.errors import InputError, RunError
from tts_verifier.log import is_running, read_header, read_trials
from tts_verifier.types import Cost, Trial

TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as the page shows it; `judge` is the held-out judge's main score, if any."""

    name: str
    anchor: str
    running: bool
    summary: Summary
    judge: str | None
    prompts: tuple[PromptView, ...]
    steps: tuple[tuple[Step, ...], ...]
    categories: tuple[Category, ...]
    distributions: tuple[str, ...]
    costs: tuple[tuple[str, int, Cost], ...]
    recipe: str
    made: tuple[tuple[str, str], ...]

    def chosen(self, read: str) -> dict[str, float]:
        """Returns by prompt text the chosen picture's objective, or a score of the judge's."""
        rows = [(r.prompt.text, r.chosen) for r in self.summary.prompts if r.chosen]
        if read == "objective":
            return {text: trial.objective for text, trial in rows}
        return {text: trial.judge.get(read, math.nan) for text, trial in rows}


def write_report(folders: Sequence[Path], path: Path, *, inline: bool = False) -> None:
    """Writes one HTML page about run folders, finished or still running.

    Args:
        folders: the runs, the first is what others are compared with.
        path: of the page.
        inline: hold thumbnails in the page instead of links to the runs' files.

    Raises:
        RunError: a folder is not a run's, or the page cannot be written.
        InputError: there is nothing to show, or the templates' library is missing.
    """
    if find_spec("jinja2") is None:
        raise InputError("Reports need jinja2. Install it: pip install 'tts-verifier[reports]'.")
    logs = [(folder, read_header(folder), read_trials(folder)) for folder in folders]
    names = dict.fromkeys(
        name for _, _, trials in logs for t in trials if t.verdict for name in t.verdict.heatmaps
    )
    maps = {name: i for i, name in enumerate(names)}
    runs = []
    for i, (folder, header, trials) in enumerate(logs):
        if not trials:
            raise InputError(f"{folder} has no judged candidate yet. Report on it later.")
        runs.append(_run_view(folder, f"r{i}", header, trials, maps=maps, page=path, inline=inline))
    page = _render(runs, maps)
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
    **page: Any,
) -> RunView:
    by_prompt: dict[str, list[Trial]] = {}
    for trial in trials:
        by_prompt.setdefault(trial.prompt.id, []).append(trial)
    summary = summarise([summarise_prompt(some[0].prompt, some) for some in by_prompt.values()])
    source = Inline(folder, trials) if page["inline"] else Linked(folder, page["page"])
    views = [
        prompt_view(f"{anchor}p{i}", some, source=source, maps=page["maps"])
        for i, some in enumerate(by_prompt.values())
    ]
    about = header["about"]
    return RunView(
        name=folder.resolve().name,
        anchor=anchor,
        running=is_running(folder),
        summary=summary,
        judge=main_judge(trials),
        prompts=tuple(views),
        steps=tuple(tuple(steps(some)) for some in by_prompt.values()),
        categories=tuple(categories(summary, main_judge(trials))),
        distributions=tuple(distributions(trials, summary)),
        costs=tuple(costs(trials)),
        recipe=yaml.safe_dump(about.get("recipe") or about, sort_keys=False, allow_unicode=True),
        made=_made(header),
    )


def _made(header: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    versions = header.get("versions", {})
    found = {
        "device": header.get("device"),
        "git revision": header.get("git_revision"),
        "python": header.get("python"),
        **versions,
    }
    return tuple((name, str(value)) for name, value in found.items() if value)


def _compared(runs: Sequence[RunView]) -> list[tuple[RunView, list[Paired]]]:
    """Returns for every run but the first how it differs from the first."""
    reads = ["objective"]
    if runs[0].judge is not None:
        reads.append(runs[0].judge)
    return [
        (run, [paired(read, run.chosen(read), runs[0].chosen(read)) for read in reads])
        for run in runs[1:]
    ]


def _side_by_side(runs: Sequence[RunView]) -> list[tuple[str, list[PromptView | None]]]:
    """Returns every prompt that two runs or more have, with each run's view of it."""
    by_text = [{view.prompt.text: view for view in run.prompts} for run in runs]
    texts = dict.fromkeys(text for views in by_text for text in views)
    rows = [(text, [views.get(text) for views in by_text]) for text in texts]
    return [row for row in rows if len(row[1]) - row[1].count(None) > 1]


def _render(runs: Sequence[RunView], maps: Mapping[str, int]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "percent": percent}
    environment.tests["finite"] = math.isfinite
    script = (TEMPLATES / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [run.name for run in runs]
    labels = [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]
    replies: dict[str, int] = {}
    text: str = environment.get_template("page.html").render(
        runs=list(zip(labels, runs, strict=True)),
        charts=[
            Markup(chart)
            for chart in progress_charts(
                {n: r.steps for n, r in zip(labels, runs, strict=True)}, runs[0].judge
            )
        ],
        compared=_compared(runs),
        side_by_side=_side_by_side(runs),
        maps=maps,
        keep=lambda text: replies.setdefault(text, len(replies)),
        replies=lambda: _packed(list(replies)),
        safe=Markup,
        style=Markup(STYLE + (TEMPLATES / "page.css").read_text("utf-8")),
        script=Markup(script),
        digest=digest,
        interval=wilson,
        nan=math.nan,
    )
    return text


def _packed(texts: Sequence[str]) -> str:
    """Returns texts as a JSON list, deflated, in base64: a small part of their size."""
    return base64.b64encode(zlib.compress(json.dumps(texts).encode(), 9)).decode()


def number(value: float) -> str:
    """Returns three decimals, or a dash for what is not known."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def signed(value: float) -> str:
    """Returns three decimals with their sign, or a dash for what is not known."""
    return f"{value:+.3f}" if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """Returns a share in percent, or a dash for what is not known."""
    return f"{value:.1%}" if math.isfinite(value) else "–"
