"""The pages of a report: reads the logs, fills the templates, writes page after page.

A page loads nothing from outside. Its content security policy allows one script only, by its
hash, so that text with a script in it cannot run even if the escaping failed.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tts_verifier.analysis.report.cards import PromptRow
from tts_verifier.analysis.report.figures import progress_charts
from tts_verifier.analysis.report.pages import (
    LONGEST_TABLE,
    Pages,
    PromptRange,
    divide,
    divide_comparison,
)
from tts_verifier.analysis.report.rendering import template_environment
from tts_verifier.analysis.report.runs import LoggedRun, RunView
from tts_verifier.analysis.report.side_by_side import SideBySide, comparisons, side_by_side
from tts_verifier.analysis.report.sources import (
    InlineThumbnails,
    LinkedFiles,
    ShownImage,
    Source,
    shown_image,
)
from tts_verifier.analysis.report.strip import TILES, Strip
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


class _Fragments:
    """Parts of one page that are seen when somebody opens them.

    They are many and alike: the page has them compressed, a tenth of their size.

    Args:
        alone: whether the report has no other page; the pages of a large one are written faster.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone, self._parts = alone, list[str]()

    def add(self, html: str) -> int:
        """Returns the number of a part, which has no `<hr>`: its texts are escaped."""
        self._parts.append(html.strip())
        return len(self._parts) - 1

    def packed(self) -> str:
        """Returns all parts with `<hr>` between them, deflated, in base64."""
        content = zlib.compress(
            "<hr>".join(self._parts).encode("utf-8", "replace"), 6 if self._alone else 1
        )
        return base64.b64encode(content).decode()


class _Report:
    """A report that is being written."""

    def __init__(self, runs: Sequence[LoggedRun], pages: Pages, *, inline: bool) -> None:
        self._runs, self._pages, self._inline = runs, pages, inline
        names = dict.fromkeys(name for run in runs for name in run.heatmaps)
        self._kinds = {name: i for i, name in enumerate(names)}
        self._templates = template_environment()
        self._parts: Any = self._templates.get_template("parts.html").module
        only = self._runs[0] if len(runs) == 1 else None
        self._strip = Strip(self._source(only, 1), only.judge) if only else None
        self._alone = True
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
        self._alone = max(numbers) == 1
        fragments, articles = self._fragments(), []
        if max(numbers) > 1:
            self._pages.make_folder()
        for run, label, parts in zip(self._runs, self._labels, divided, strict=True):
            articles.append(self._articles(run, parts[0], fragments))
            for part in parts[1:]:
                self._write_part(run, label, part, last=max(numbers))
        views = [run.view() for run in self._runs]
        rows = side_by_side(views)
        compared = divide_comparison(len(rows), max(numbers)) if rows else []
        for part in compared:
            if part.page > 1:
                self._write_comparison(rows, part, last=compared[-1].page)
        self._write_main(views, articles, fragments, parts=divided, rows=rows, compared=compared)
        pages = {1, *numbers, *(part.page for part in compared)}
        return [self._pages.path(number) for number in sorted(pages)]

    def _source(self, run: LoggedRun, page: int) -> Source:
        if self._inline:
            return InlineThumbnails(run.folder)
        return LinkedFiles(run.folder, self._pages.path(page))

    def _fragments(self) -> _Fragments:
        return _Fragments(alone=self._alone)

    def _articles(self, run: LoggedRun, part: PromptRange, fragments: _Fragments) -> list[str]:
        source = self._source(run, part.page)
        views = run.read(part, source, self._kinds, self._strip, maps=self._alone)
        return [self._parts.article(view, fragments) for view in views]

    def _write_part(self, run: LoggedRun, label: str, part: PromptRange, *, last: int) -> None:
        fragments = self._fragments()
        articles = self._articles(run, part, fragments)
        title = f"{label}, prompts {part.start + 1} to {part.stop}"
        rows = run.rows[part.start : part.stop]
        find = self._parts.find(_categories(rows))
        table = self._parts.index(
            f"{part.stop - part.start} prompts in a table",
            rows,
            run.judge,
            self._pages,
            part.page,
        )
        self._write_page(
            part.page, "further.html", title, last, fragments, content=[find, table, *articles]
        )

    def _write_comparison(
        self, rows: Sequence[SideBySide], part: PromptRange, *, last: int
    ) -> None:
        title = f"{' against '.join(self._labels)}, prompts {part.start + 1} to {part.stop}"
        some = rows[part.start : part.stop]
        content = [self._parts.outcomes(some, self._labels), self._compared(some, part.page)]
        self._write_page(part.page, "further.html", title, last, self._fragments(), content=content)

    def _compared(self, rows: Sequence[SideBySide], page: int) -> str:
        sources = [self._source(run, page) for run in self._runs]

        def show(row: PromptRow, run: int) -> ShownImage | None:
            return shown_image(row.shown, sources[run], self._kinds) if row.shown else None

        html: str = self._parts.compared(rows, self._labels, show, self._pages, page)
        return html

    def _write_main(
        self,
        views: Sequence[RunView],
        articles: Sequence[Sequence[str]],
        fragments: _Fragments,
        *,
        parts: Sequence[Sequence[PromptRange]],
        rows: Sequence[SideBySide],
        compared: Sequence[PromptRange],
    ) -> None:
        runs = list(zip(self._labels, views, strict=True))
        first = rows if compared and compared[0].page == 1 else rows[:TILES]
        states = {label: view.states for label, view in runs}
        last = max(part.page for part in [*(p for some in parts for p in some), *compared])
        self._write_page(
            1,
            "page.html",
            ", ".join(self._labels),
            last,
            fragments,
            runs=runs,
            articles=articles,
            parts_of=parts,
            charts=progress_charts(states, views[0].judge),
            prompt_categories=_categories([row for view in views for row in view.prompts]),
            comparisons=comparisons(views),
            compared=compared,
            strip=self._strip.tiles if self._strip else (),
            side_by_side=first,
            pairs=self._compared(first, 1) if first else "",
            longest_table=LONGEST_TABLE,
            interval=wilson,
        )

    def _write_page(
        self,
        page: int,
        template: str,
        title: str,
        last: int,
        fragments: _Fragments,
        **values: Any,
    ) -> None:
        text = self._templates.get_template(template).render(
            title=title,
            page=page,
            last=last,
            pages=self._pages,
            labels=self._labels,
            kinds=self._kinds,
            fragments=fragments,
            **values,
        )
        write_whole(self._pages.path(page), text, "--output")


def _categories(rows: Sequence[PromptRow]) -> list[str]:
    """Returns the categories of prompts in the order of the run; "" for those without one."""
    return list(dict.fromkeys(row.prompt.category for row in rows))
