"""SECURITY.md names a test for every promise, and each of these tests is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = [
    row.strip("|").split("|")
    for row in PAGE.partition("## Promised")[2].partition("\n## ")[0].splitlines()
    if row.startswith("| ") and not row.startswith("| promise")
]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_every_promise_names_its_test() -> None:
    assert len(PROMISES) >= 10
    for promise, tests in PROMISES:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", tests), promise


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_every_named_test_is_there(path: str, name: str) -> None:
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in [n.name for n in module.body if isinstance(n, ast.FunctionDef)]
