"""What `tts-run --list` shows: recipes and parts by name, with a line about each.

It reads source files and imports none of them: importing every part would take many seconds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from tts_verifier import registry

_LINE_WIDTH: Final = 80
_TITLES: Final = {
    "strategy": "strategies",
    "verifier": "verifiers, which may be judges too",
    "generator": "generators",
    "comparer": "comparers, for ties",
    "rewriter": "rewriters, for the strategy reflection",
}


def catalogue_text() -> str:
    """Returns the names of packaged recipes and of all parts, plug-ins included, a line each."""
    recipes = {path.stem: _first_comment(path) for path in sorted(_recipes())}
    lines = ["recipes: tts-run NAME", *_named_lines(recipes)]
    for role, title in _TITLES.items():
        targets = sorted(registry.names(role).items())
        about = {name: first_line_of(target) for name, target in targets}
        lines += ["", f"{title}: tts-run --explain {role}.NAME", *_named_lines(about)]
    more = "Parts of your own: name: my_file.py:MyClass, or package.module:MyClass"
    return "\n".join([*lines, "", more])


def first_line_of(target: str) -> str:
    """Returns the first sentence of a class's docstring, given "module:Class" of this package.

    Of a plug-in it returns where it is, because reading that could run code.
    """
    module, _, path = target.partition(":")
    if module.partition(".")[0] != "tts_verifier":
        return f"plug-in, {target}"
    return _docstring(module, path.partition(".")[0])


def _recipes() -> Iterator[Path]:
    return registry.recipe_folder().glob("*.yaml")


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return _sentence(comment)


def _docstring(module: str, name: str) -> str:
    tree = _tree(module)
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return _sentence(ast.get_docstring(node) or "")
    # A package hands on what its modules define; some import it when it is first used.
    for inner in ast.walk(tree):
        if isinstance(inner, ast.ImportFrom) and any(a.name == name for a in inner.names):
            return _docstring(inner.module or "", name)
    return ""


@lru_cache
def _tree(module: str) -> ast.Module:
    base = Path(registry.__file__).parents[2].joinpath(*module.split("."))
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _sentence(text: str) -> str:
    """Returns the first sentence."""
    flat = " ".join(text.split())
    return f"{flat.split('. ')[0].rstrip('.')}." if flat else ""


def _named_lines(about: dict[str, str]) -> list[str]:
    width = max(map(len, about), default=0)
    return [_cut(f"  {name:{width}}  {text}") for name, text in about.items()]


def _cut(line: str) -> str:
    """Returns a line that fits the terminal, cut at a word."""
    if len(line) <= _LINE_WIDTH:
        return line
    return f"{line[: _LINE_WIDTH - 2].rsplit(' ', 1)[0].rstrip(',;:')} …"
