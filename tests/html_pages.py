"""What tests of HTML pages share: a parsed page, and a text that tries to become markup."""

from __future__ import annotations

import base64
import re
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

EVIL = (
    '</pre></style><script>document.title="owned"</script><img src="http://x/" onerror=a()>{{7*7}}'
)


def fragments(page: str) -> list[str]:
    """Returns the parts of a page that are compressed in it."""
    packed = re.findall(r'<template id="fragments">(.*?)</template>', page)
    return [part for one in packed for part in decoded(one).split("<hr>")]


def whole(path: Path) -> str:
    """Returns a page's source, and after it the parts that are compressed in it."""
    source = path.read_text("utf-8")
    return "\n".join([source, *fragments(source)])


def decoded(packed: str) -> str:
    return zlib.decompress(base64.b64decode(packed)).decode()


class Page(HTMLParser):
    """A parsed page with the parts that are compressed in it: tags with attributes, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.fragments = fragments(self.source)
        for part in self.fragments:
            self.feed(part)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, name: str) -> list[str]:
        return [attrs.get(name) or "" for found, attrs in self.tags if found == tag]

    def count(self, tag: str) -> int:
        return Counter(found for found, _ in self.tags)[tag]
