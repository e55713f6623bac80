"""The notebooks run, offline and without a kernel: their code cells, in order, in one namespace."""

import ast
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


def run_cell(code: str, names: dict[str, Any]) -> object:
    """Runs a cell and returns the value of its last line if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def displayed(value: object) -> str:
    """Returns what a notebook would show."""
    html = getattr(value, "_repr_html_", None)
    return repr(value) if html is None else str(html())


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    notebook: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {}
    values = [
        run_cell("".join(cell["source"]), names)
        for cell in cells(notebook)
        if cell["cell_type"] == "code"
    ]
    assert all(map(displayed, values))
    check(notebook.stem, names, capsys.readouterr().out)


def check(name: str, names: dict[str, Any], printed: str) -> None:
    """Asserts what the text around the cells says."""
    if name == "rerank_your_pictures":
        assert names["best"].index == 1, "the picture of the prompt"
    elif name == "wrap_your_pipeline":
        assert len(names["out"].trials) == 3
        assert len(names["quick"].trials) < 8
    else:
        assert (names["gain"]["gain"] >= 0).all()
        assert len([line for line in printed.splitlines() if line[:2] in ("1 ", "6 ")]) == 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_begins_with_its_title(notebook: Path) -> None:
    first, *others = cells(notebook)
    title = notebook.stem.replace("_", " ").capitalize()
    assert "".join(first["source"]).startswith(f"# {title}\n")
    for cell in others:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_there_are_three_notebooks() -> None:
    assert len(NOTEBOOKS) == 3
