"""The pages of a report: reads the logs, fills the templates, writes page after page.

A page loads nothing from outside. Its content security policy allows one script only, by its
hash, so that text with a script in it cannot run even if the escaping failed.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tts_verifier.analysis.report.cards import PromptRow
from tts_verifier.analysis.report.figures import (
    PairedDifference,
    paired_difference,
    progress_charts,
)
from tts_verifier.analysis.report.pages import TABLE, Pages, Part, divide, divide_comparison
from tts_verifier.analysis.report.rendering import template_environment
from tts_verifier.analysis.report.runs import LoggedRun, RunView
from tts_verifier.analysis.report.sources import (
    InlineThumbnails,
    LinkedFiles,
    ShownImage,
    Source,
    shown_image,
)
from tts_verifier.analysis.report.training_run import is_training_run, write_training_report
from tts_verifier.analysis.whole_files import write_whole
from tts_verifier.choice.summary import wilson
from tts_verifier.errors import InputError
from tts_verifier.images import as_list


def write_report(folders: Sequence[Path], path: Path, *, inline: bool = False) -> list[Path]:
    """Writes an HTML page about run folders, finished or still running.

    The page of a training run's folder shows its curves and what the trained verifier says of
    held-out pictures, and needs no other file.

    A report of more than 4,096 candidates has further pages in the folder `NAME_pages` beside the
    page `NAME.html`; memory does not grow with the candidates' text and images.

    Args:
        folders: the runs; the others are compared with the first.
        path: of the page.
        inline: put thumbnails into the pages instead of links to the runs' files.

    Returns:
        The pages, the main page first.

    Raises:
        RunError: a folder is not a run folder, or a page cannot be written.
        InputError: there is nothing to show, `folders` is no list, a training run is not the only
            one.
    """
    given = as_list(folders, "run folders")
    training = [folder for folder in given if is_training_run(folder)]
    if training and len(given) > 1:
        raise InputError(
            f"A page is about one training run, or about searches; got {len(given)} folders, and "
            f"{training[0]} is a training run. Report on it alone."
        )
    if training:
        write_training_report(training[0], path)
        return [path]
    runs = [LoggedRun(folder, f"r{i}") for i, folder in enumerate(given)]
    return _Report(runs, Pages(path), inline=inline).write()


class _Replies:
    """The replies on one page. They are many and alike: the page has each once, compressed."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Returns the number of a reply, a new one for a new text."""
        return self._numbers.setdefault(text, len(self._numbers))

    def packed(self) -> str:
        """Returns all replies as a JSON list, deflated, in base64."""
        # The highest level would take fifty times as long for a tenth less.
        content = zlib.compress(json.dumps(list(self._numbers)).encode(), 4)
        return base64.b64encode(content).decode()


class _Report:
    """A report that is being written."""

    def __init__(self, runs: Sequence[LoggedRun], pages: Pages, *, inline: bool) -> None:
        self._runs, self._pages, self._inline = runs, pages, inline
        names = dict.fromkeys(name for run in runs for name in run.heatmaps)
        self._kinds = {name: i for i, name in enumerate(names)}
        self._templates = template_environment()
        self._parts: Any = self._templates.get_template("parts.html").module
        names_of_runs = [run.name for run in runs]
        # Folders of different parents may have the same name.
        self._labels = [
            n if names_of_runs.count(n) == 1 else f"{n} ({i + 1})"
            for i, n in enumerate(names_of_runs)
        ]

    def write(self) -> list[Path]:
        """Writes the further pages, then the main page; returns their paths."""
        divided = divide([run.sizes for run in self._runs], inline=self._inline)
        numbers = [part.page for parts in divided for part in parts]
        replies, articles = _Replies(), []
        if max(numbers) > 1:
            self._pages.make_folder()
        for run, label, parts in zip(self._runs, self._labels, divided, strict=True):
            articles.append(self._articles(run, parts[0], replies))
            for part in parts[1:]:
                self._write_part(run, label, part, last=max(numbers))
        views = [run.view() for run in self._runs]
        rows = _side_by_side(views)
        compared = divide_comparison(len(rows), max(numbers)) if rows else []
        for part in compared:
            if part.page > 1:
                self._write_comparison(rows, part, last=compared[-1].page)
        self._write_main(views, articles, replies, parts=divided, rows=rows, compared=compared)
        pages = {1, *numbers, *(part.page for part in compared)}
        return [self._pages.path(number) for number in sorted(pages)]

    def _source(self, run: LoggedRun, page: int) -> Source:
        if self._inline:
            return InlineThumbnails(run.folder)
        return LinkedFiles(run.folder, self._pages.path(page))

    def _articles(self, run: LoggedRun, part: Part, replies: _Replies) -> list[str]:
        source = self._source(run, part.page)
        views = run.read(part, source, self._kinds, compared=len(self._runs) > 1)
        return [self._parts.article(view, replies) for view in views]

    def _write_part(self, run: LoggedRun, label: str, part: Part, *, last: int) -> None:
        replies = _Replies()
        articles = self._articles(run, part, replies)
        title = f"{label}, prompts {part.start + 1} to {part.stop}"
        table = self._parts.index(
            f"{part.stop - part.start} prompts in a table",
            run.rows[part.start : part.stop],
            run.judge,
            self._pages,
            part.page,
        )
        self._write_page(
            part.page, "further.html", title, last, replies, content=[table, *articles]
        )

    def _write_comparison(self, rows: Sequence[_SideBySide], part: Part, *, last: int) -> None:
        title = f"{' against '.join(self._labels)}, prompts {part.start + 1} to {part.stop}"
        content = [self._compared(rows, part)]
        self._write_page(part.page, "further.html", title, last, _Replies(), content=content)

    def _compared(self, rows: Sequence[_SideBySide], part: Part) -> str:
        sources = [self._source(run, part.page) for run in self._runs]

        def show(row: PromptRow, run: int) -> ShownImage | None:
            return shown_image(row.shown, sources[run], self._kinds) if row.shown else None

        some = rows[part.start : part.stop]
        html: str = self._parts.compared(some, self._labels, show, self._pages, part.page)
        return html

    def _write_main(
        self,
        views: Sequence[RunView],
        articles: Sequence[Sequence[str]],
        replies: _Replies,
        *,
        parts: Sequence[Sequence[Part]],
        rows: Sequence[_SideBySide],
        compared: Sequence[Part],
    ) -> None:
        runs = list(zip(self._labels, views, strict=True))
        states = {label: view.states for label, view in runs}
        last = max(part.page for part in [*(p for some in parts for p in some), *compared])
        self._write_page(
            1,
            "page.html",
            ", ".join(self._labels),
            last,
            replies,
            runs=runs,
            articles=articles,
            parts_of=parts,
            charts=progress_charts(states, views[0].judge),
            comparisons=_comparisons(views),
            compared=compared,
            side_by_side=[self._compared(rows, part) for part in compared if part.page == 1],
            longest_table=TABLE,
            interval=wilson,
        )

    def _write_page(
        self,
        page: int,
        template: str,
        title: str,
        last: int,
        replies: _Replies,
        **values: Any,
    ) -> None:
        text = self._templates.get_template(template).render(
            title=title,
            page=page,
            last=last,
            pages=self._pages,
            labels=self._labels,
            kinds=self._kinds,
            replies=replies,
            **values,
        )
        write_whole(self._pages.path(page), text, "--output")


_SideBySide = tuple[str, Sequence[PromptRow | None]]
"""A prompt's text, and the prompt as each run has it."""


def _comparisons(runs: Sequence[RunView]) -> list[tuple[RunView, list[PairedDifference]]]:
    """Returns every run but the first, with its differences from the first."""
    measures = ["objective"]
    if runs[0].judge is not None:
        measures.append(runs[0].judge)
    return [
        (run, [paired_difference(m, run.chosen(m), runs[0].chosen(m)) for m in measures])
        for run in runs[1:]
    ]


def _side_by_side(runs: Sequence[RunView]) -> list[_SideBySide]:
    """Returns every prompt that at least two runs have, with the row of each run."""
    by_text = [{row.prompt.text: row for row in run.prompts} for run in runs]
    texts = dict.fromkeys(text for rows in by_text for text in rows)
    found: list[_SideBySide] = [(text, [rows.get(text) for rows in by_text]) for text in texts]
    return [row for row in found if len(row[1]) - list(row[1]).count(None) > 1]
