"""The fenced blocks of the documentation's pages."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "tts_verifier/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^(?:<!-- ([^\n]+) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    page: str
    """Its path in the repository."""
    line: int
    """Of its first fence."""
    mark: str
    """The comment above it, empty if there is none."""
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of a page.

    Raises:
        AssertionError: a fence has no language, no partner, or is indented.
    """
    text, name = page.read_text("utf-8"), str(page.relative_to(ROOT))
    found = [
        Block(name, text.count("\n", 0, match.start(2)) + 1, match[1] or "", match[2], match[3])
        for match in BLOCK.finditer(text)
    ]
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found), name
    return found
