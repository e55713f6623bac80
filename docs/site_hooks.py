"""Gives the site the pages of the whole repository, at their places in it; see mkdocs.yml."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("*.md", "docs/**/*.md", "tts_verifier/**/*.md", "examples/**/*.md")
LINK = re.compile(r"\]\(([^)#:\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of docs/ by all pages, and by the files of the repository they link to."""
    pages = {page for pattern in PAGES for page in ROOT.glob(pattern)}
    found = pages | {target for page in pages for target in _linked(page)}
    theme = [file for file in files if file.src_dir != config.docs_dir]
    own = [
        File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, True)
        for path in sorted(found)
    ]
    return Files([*own, *theme])


def _linked(page: Path) -> list[Path]:
    """Returns the files of the repository, other than pages, that a page links to."""
    targets = [(page.parent / link).resolve() for link in LINK.findall(page.read_text("utf-8"))]
    return [path for path in targets if path.suffix != ".md" and path.is_file()]
