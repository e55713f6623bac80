"""A file imports only from levels above it; the folders of level 2 are strangers.

Levels are those of the package's design: nouns, pure helpers, the parts, the log, the loop,
what is built from them, the commands.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tts_verifier"

LEVELS = {
    0: ["errors", "showing", "types", "ranking"],
    1: [
        "images", "objective", "seeds", "regions", "identity", "provenance", "prompts",
        "registry", "documents", "arguments", "seams", "memory",
    ],
    2: ["strategies", "generators", "verifiers", "shapes"],
    3: ["rows", "files", "lock", "parts", "header", "reading", "waiting", "worker", "log"],
    4: [
        "search", "devices", "binding", "attempts", "batch", "progress", "summary", "result",
        "runner",
    ],
    5: ["testing", "gallery", "scoring", "rejudge", "recipe", "calls", "pipeline", "charts",
        "expectations", "pruning", "replay", "report", "training"],
    6: ["cli", "__init__"],
}  # fmt: skip
LEVEL = {name: level for level, names in LEVELS.items() for name in names}
ORDER = [name for names in LEVELS.values() for name in names]
"""Within a level, but not between the folders of level 2, later ones may import earlier ones."""

LAZY_IMPORTS_DOWN = {("seams", "verifiers")}
"""`Verifier.from_pretrained` loads ImageDoctor; all else goes through the registry."""

FILES = sorted(PACKAGE.rglob("*.py"))


def home(module: str) -> str | None:
    """The top name of a module of this package below `tts_verifier`, "__init__" for itself."""
    first, _, rest = module.partition(".")
    if first != "tts_verifier":
        return None
    return rest.split(".")[0] or "__init__"


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module of this package that a file imports, and whether inside a function."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            modules = [node.module or ""]
            if node.module == "tts_verifier":
                modules = [f"tts_verifier.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        found += [(top, id(node) in lazy) for m in modules if (top := home(m)) is not None]
    return found


def owner(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed(importer: str, imported: str, lazy: bool) -> bool:
    if importer in (imported, "__init__"):
        return True
    if lazy and (importer, imported) in LAZY_IMPORTS_DOWN:
        return True
    if LEVEL[importer] != LEVEL[imported]:
        return LEVEL[importer] > LEVEL[imported]
    return LEVEL[importer] != 2 and ORDER.index(importer) > ORDER.index(imported)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_up(path: Path) -> None:
    importer = owner(path)
    assert importer in LEVEL, f"{path.name} needs a level in this test"
    wrong = [name for name, lazy in imports(path) if not allowed(importer, name, lazy)]
    assert wrong == []


def test_the_rule_finds_what_breaks_it() -> None:
    assert not allowed("types", "objective", lazy=False)
    assert not allowed("strategies", "generators", lazy=True)
    assert not allowed("log", "runner", lazy=True)
    assert not allowed("seams", "verifiers", lazy=False)
    assert allowed("runner", "log", lazy=False)
    assert allowed("training", "shapes", lazy=False)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            words = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or 0) - node.lineno + 1
            lines -= 0 if words is None else len(words.splitlines())
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_the_top_level_is_fixed() -> None:
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    allowed_folders = {"tts_verifier", "pipelines", "recipes", "tests", "examples"}
    made_by_tools = {"runs", "build", "dist", "tts_verifier.egg-info"}
    assert folders <= allowed_folders | made_by_tools | {"docs"}
