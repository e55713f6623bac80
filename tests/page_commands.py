"""Checks of the shell commands that the pages show, by the parsers of the programs themselves."""

import argparse
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from accelerate.commands.launch import launch_command_parser
from page_blocks import ROOT

from tts_verifier import registry
from tts_verifier.cli.demo import demo_command
from tts_verifier.cli.evaluate import evaluate_command
from tts_verifier.cli.replay import replay_command
from tts_verifier.cli.report import report_command
from tts_verifier.cli.run import run_command
from tts_verifier.cli.score import score_command
from tts_verifier.cli.serve import serve_command
from tts_verifier.cli.train import train_command
from tts_verifier.recipe import load_recipe
from tts_verifier.recipe.parallel_options import ParallelOptions, overrides_of
from tts_verifier.scoring import parse_limits
from tts_verifier.training.entries import read_config

COMMANDS: Mapping[str, click.Command] = {
    "tts-demo": demo_command,
    "tts-evaluate": evaluate_command,
    "tts-replay": replay_command,
    "tts-report": report_command,
    "tts-run": run_command,
    "tts-score": score_command,
    "tts-serve": serve_command,
    "tts-train": train_command,
}
OTHER_PROGRAMS: Mapping[str, str] = {
    "curl": "asks a server",
    "dask": "starts a cluster",
    "duckdb": "the program is another package than its library",
    "echo": "prints",
    "export": "sets variables",
    "git": "reads an old commit, which a shallow clone lacks",
    "ln": "links a folder into ComfyUI's",
    "mkdir": "makes a folder",
    "mypy": "the README's test command runs it",
    "printf": "prints",
    "ray": "starts a cluster",
    "ruff": "the README's test command runs it",
    "tar": "unpacks",
}
"""Programs whose arguments no test checks, and why."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


class Parsed(Exception):
    """Ends a script as soon as its arguments are read."""


def commands(code: str) -> Iterator[list[str]]:
    """Yields the words of every command of a shell block, without settings of variables."""
    for line in code.replace("\\\n", " ").replace("|\n", "| ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z]\w*=", word):
                words.append(word)


def check_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises where a program would refuse its arguments."""
    program, arguments = Path(words[0]).name, [word for word in words[1:] if word != "…"]
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    if program in COMMANDS:
        _check_ours(program, arguments)
    elif program.startswith("python"):
        _check_python(arguments, monkeypatch)
    elif program in PROGRAMS:
        PROGRAMS[program](arguments, monkeypatch)
    else:
        assert program in OTHER_PROGRAMS, f"{program}: give it a check, or say why it has none"


def parse(command: click.Command, words: Sequence[str]) -> dict[str, Any]:
    """Returns the values of a click command's parameters; `--help` and its like end it."""
    try:
        return command.make_context(command.name, [*words]).params
    except click.exceptions.Exit:
        return {}


def _check_ours(program: str, words: Sequence[str]) -> None:
    with redirect_stdout(StringIO()):
        values = parse(COMMANDS[program], words)
    if values.get("recipe", "").islower():
        engine = overrides_of(values["parallel"]) if values.get("parallel") else []
        _check_recipe(values["recipe"], [*values["overrides"], *engine])
    elif "entry" in values:
        # A file is the reader's; the packaged config of the entry has the same keys.
        config = values["entry"] if values["config"].endswith(".yaml") else values["config"]
        read_config(values["entry"], config, values["overrides"])
    if "verifier" in values:
        name = values["verifier"].partition(":")[0]
        assert name in {"shapes", *registry.names("verifier")} or "/" in name, name
    if "least" in values:
        parse_limits(values["least"], values["most"])
        given = [i.partition("=")[0] for i in values["images"] if i.startswith("parallel.")]
        known = ParallelOptions.__dataclass_fields__
        assert {i.removeprefix("parallel.") for i in given} <= set(known), given


def _check_recipe(recipe: str, overrides: Sequence[str]) -> None:
    """Reads a packaged recipe, or a file of the repository, and builds what needs no weights."""
    # A file of prompts is the reader's; so is a recipe that begins with `my_`.
    fixed = [re.sub(r"^prompts=\S+\.\w+$", "prompts=[x]", text) for text in overrides]
    load_recipe("fake" if recipe.startswith("my_") else recipe, fixed).check()


def _check_python(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = words
    if first == "-m":
        _check_module(rest[0], rest[1:], monkeypatch)
    elif first == "-c":
        code = compile(rest[0], "-c", "exec")
        # Only those that need no file are run.
        if "read_" not in rest[0]:
            with redirect_stdout(StringIO()) as out:
                exec(code, {})
            assert out.getvalue()
    else:
        _check_script(ROOT / first, rest, monkeypatch)


def _check_module(name: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "tts_verifier.training":
        read_config(words[0], words[1], words[2:])
    elif name == "venv":
        assert words == [".venv"]
    elif name == "build":
        assert not words
    else:
        spec = find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        _check_script(Path(spec.origin), words, monkeypatch)


@cache
def _script(path: Path) -> dict[str, Any]:
    return runpy.run_path(str(path))


def _check_script(path: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the `main` of a script until its arguments are read."""
    if path.name == "test_layout.py":
        assert not words
        return
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
        main = _script(path)["main"]
        if isinstance(main, click.Command):
            _parse_group(main, words)
            return
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, _stopping(name))
        patch.setattr(sys, "argv", [str(path), *words])
        with pytest.raises(Parsed):
            main()


def _parse_group(command: click.Command, words: Sequence[str]) -> None:
    if isinstance(command, click.Group):
        command, words = command.commands[words[0]], words[1:]
    parse(command, words)


def _stopping(name: str) -> Callable[..., Any]:
    """Returns a method of ArgumentParser that ends the script once it has succeeded."""
    method = getattr(argparse.ArgumentParser, name)

    def stops(*arguments: Any) -> Any:
        with redirect_stdout(StringIO()):
            try:
                method(*arguments)
            except SystemExit as end:
                if end.code:
                    raise AssertionError("the script refuses its arguments") from end
        raise Parsed

    return stops


def _check_pip(words: Sequence[str], _: pytest.MonkeyPatch) -> None:
    assert words[0] == "install"
    extras = PROJECT["project"]["optional-dependencies"]
    for word in words[1:]:
        if match := re.fullmatch(r"(?:\.|tts-verifier)\[(.+)\]", word):
            assert set(match[1].split(",")) <= set(extras), word
        elif not word.startswith("-"):
            index = words[words.index(word) - 1] == "--index-url"
            assert index or word in ("torch", "build", "twine") or (ROOT / word).exists(), word


def _check_accelerate(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0] == "launch"
    options = launch_command_parser().parse_args(words[1:])
    rest = options.training_script_args
    if options.module:
        _check_module(options.training_script, rest, monkeypatch)
    else:
        _check_script(ROOT / options.training_script, rest, monkeypatch)


def _check_pytest(words: Sequence[str], _: pytest.MonkeyPatch) -> None:
    markers = [
        line.partition(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    ]
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            assert word in markers, word
        elif before not in ("-n", "--maxprocesses") and not word.startswith("-"):
            assert (ROOT / word).exists(), word


def _check_mkdocs(words: Sequence[str], _: pytest.MonkeyPatch) -> None:
    assert words[0] in ("serve", "build")


PROGRAMS: Mapping[str, Callable[[Sequence[str], pytest.MonkeyPatch], None]] = {
    "accelerate": _check_accelerate,
    "mkdocs": _check_mkdocs,
    "pip": _check_pip,
    "pytest": _check_pytest,
}
