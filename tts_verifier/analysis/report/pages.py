"""Divides a large report into pages: which prompts are where, and how pages refer to each other.

A report of at most `SINGLE` candidates is one page. A larger one has its summary and its first
prompts in the main page `NAME.html`, and the others in `NAME_pages/0002.html` and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tts_verifier.analysis.report.sources import address_of
from tts_verifier.errors import RunError

SINGLE: Final = 4096
"""The most candidates of a report on one page."""
LINKED: Final = 2048
"""Candidates on a page of a larger one: some 3 MB."""
INLINE: Final = 256
"""The same with thumbnails in the page: some 4 MB."""
COMPARED: Final = 500
"""Prompts on a page that compares runs."""
LONGEST_TABLE: Final = 10_000
"""The most prompts in the table of the main page; each page has a table of its own prompts."""


@dataclass(frozen=True, slots=True)
class PromptRange:
    """Prompts that follow one another in a run, or in a comparison, on one page."""

    page: int
    """Number of the page; 1 is the main page."""
    start: int
    """The first prompt, from 0."""
    stop: int
    """One more than the last prompt."""


@dataclass(frozen=True, slots=True)
class Pages:
    """The files of a report."""

    main: Path
    """The main page."""

    @property
    def folder(self) -> Path:
        """The folder of all further pages."""
        return self.main.with_name(f"{self.main.stem}_pages")

    def path(self, page: int) -> Path:
        """Returns the path of a page by its number, 1 for the main page."""
        return self.main if page == 1 else self.folder / f"{page:04}.html"

    def link(self, here: int, there: int) -> str:
        """Returns the relative address of a page as another one names it; empty for itself."""
        if here == there:
            return ""
        if there == 1:
            return f"../{address_of(self.main.name)}"
        name = self.path(there).name
        return f"{address_of(self.folder.name)}/{name}" if here == 1 else name

    def make_folder(self) -> None:
        """Creates the folder of the further pages.

        Raises:
            RunError: it cannot be created, or it is a link: a run folder from somebody else could
                have pages written anywhere.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.folder} cannot be made: {error}. Give another page with --output."
            ) from error
        if self.folder.is_symlink():
            raise RunError(
                f"{self.folder} is a link, and pages are written into the report's own folder "
                "only. Remove the link, or give another page with --output."
            )


def divide(runs: Sequence[Sequence[int]], *, inline: bool) -> list[list[PromptRange]]:
    """Returns for each run the parts of its prompts; the first part is on the main page.

    Args:
        runs: the numbers of candidates of the prompts of each run.
        inline: whether pages hold thumbnails.
    """
    if sum(map(sum, runs)) <= SINGLE:
        return [[PromptRange(1, 0, len(sizes))] for sizes in runs]
    most, page, divided = INLINE if inline else LINKED, 1, []
    for sizes in runs:
        # The main page has the first prompts of every run.
        parts = [PromptRange(1, 0, _fitting(sizes, 0, most // len(runs)))]
        while (start := parts[-1].stop) < len(sizes):
            page += 1
            parts.append(PromptRange(page, start, _fitting(sizes, start, most)))
        divided.append(parts)
    return divided


def _fitting(sizes: Sequence[int], start: int, most: int) -> int:
    """Returns where a page ends that begins at a prompt; it has one prompt at least."""
    stop, count = start + 1, sizes[start]
    while stop < len(sizes) and count + sizes[stop] <= most:
        count += sizes[stop]
        stop += 1
    return stop


def divide_comparison(prompts: int, last_page: int) -> list[PromptRange]:
    """Returns the parts of a comparison of runs; on the main page if all pages are that one."""
    if last_page == 1:
        return [PromptRange(1, 0, prompts)]
    starts = range(0, prompts, COMPARED)
    return [
        PromptRange(last_page + i, start, min(start + COMPARED, prompts))
        for i, start in enumerate(starts, 1)
    ]
