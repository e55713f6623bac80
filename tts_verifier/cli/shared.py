"""What every command shares: user errors without a traceback, and quiet libraries.

What a user can fix is printed without a traceback and ends with status 2.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

import click

P = ParamSpec("P")


def friendly_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Prints a TTSError and a RunWarning as its message, and what Ctrl-C leaves behind."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from tts_verifier.errors import RunWarning, TTSError

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, RunWarning):
                click.echo(f"Warning: {message}", err=True)
            else:
                usual(message, category, *place)

        try:
            with warnings.catch_warnings():
                usual = warnings.showwarning
                warnings.showwarning = show  # type: ignore[assignment]
                warnings.simplefilter("always", RunWarning)
                command(*args, **kwargs)
        except TTSError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo(
                "\nStopped. What was judged is in the run folder; the same command continues it.",
                err=True,
            )
            sys.exit(130)

    return wrapped


def quiet_libraries() -> None:
    """Keeps the bars and hints with which libraries load models out of what we print."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
