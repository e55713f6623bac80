"""Shared by all commands: errors without a traceback, and quiet libraries."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, ParamSpec

import click

import tts_verifier

P = ParamSpec("P")


class _PathType(click.Path):
    """A path that is not empty: an empty variable of a shell would be the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a path must not be empty; the working folder is '.'.", param, ctx)
        return super().convert(value, param, ctx)


PATH: Final = _PathType(path_type=Path)
"""The type of arguments and options that are paths."""


def tts_command(name: str) -> Callable[[Callable[P, None]], click.Command]:
    """Makes a command of a function: with -h, --version, and errors without a traceback."""

    def decorate(function: Callable[P, None]) -> click.Command:
        version = click.version_option(tts_verifier.__version__, prog_name=name)
        settings = {"help_option_names": ["-h", "--help"]}
        shown = version(friendly_errors(function))
        return click.command(name, cls=_Command, context_settings=settings)(shown)

    return decorate


class _Command(click.Command):
    """A command whose usage errors are one line too."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            # Without its context, click prints no lines about the usage above the message.
            message = f"{error.format_message()} See {self.name} -h."
            raise click.UsageError(message) from error


def friendly_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Prints errors and warnings of the package as plain messages.

    A `TTSError` ends the command with status 2 and Ctrl-C with status 130; a `RunWarning` does
    not end it. Other errors keep their traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from tts_verifier.errors import RunWarning, TTSError

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, RunWarning):
                say(f"Warning: {message}", err=True)
            else:
                show_usually(message, category, *place)

        try:
            # Python shows a warning once per place in the code; each of ours is about another file.
            with warnings.catch_warnings():
                show_usually = warnings.showwarning
                warnings.showwarning = show  # type: ignore[assignment]
                warnings.simplefilter("always", RunWarning)
                # Of damaged metadata, which is harmless. A command has its process for itself.
                warnings.filterwarnings("ignore", module=r"PIL\.")
                # Of one library about another, which users cannot mend.
                warnings.filterwarnings("ignore", module=r"(diffusers|huggingface_hub)\.")
                command(*args, **kwargs)
        except TTSError as error:
            say(f"Error: {error}", err=True)
            sys.exit(2)
        # 130 is what a shell reports after Ctrl-C: 128 and the number of SIGINT.
        except KeyboardInterrupt:
            click.echo(
                "\nStopped. What was written so far is complete; "
                "the same command goes on from there.",
                err=True,
            )
            sys.exit(130)

    return wrapped


def at_once(show: Callable[[str], None]) -> Callable[..., None]:
    """Makes the callback of an option that shows something, given its value, and ends."""

    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            friendly_errors(show)(value)
            context.exit()

    return callback


def say(text: object, *, err: bool = False) -> None:
    """Prints text; control characters in what others wrote are shown, not obeyed."""
    from tts_verifier.errors import printable

    # Not `click.echo`, which writes past a progress bar into its line.
    out = sys.stderr if err else sys.stdout
    encoding = getattr(out, "encoding", None) or "utf-8"
    shown = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    print(shown, file=out, flush=True)


def say_loading(what: str) -> None:
    """Says in a terminal that something is loaded, which takes seconds, before it is."""
    if sys.stderr.isatty():
        say(f"loading {what}", err=True)


def quiet_libraries() -> None:
    """Turns off the progress bars and hints that libraries print while they load models."""
    # A value that the user has set takes precedence.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
