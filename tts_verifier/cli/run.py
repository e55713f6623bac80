"""The commands: parse, call one public function, print. Heavy modules load inside.

What a user can fix is printed without a traceback and ends with status 2.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import click

P = ParamSpec("P")


def _friendly(command: Callable[P, None]) -> Callable[P, None]:
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


def _calm_libraries() -> None:
    """Keeps the bars and hints with which libraries load models out of what we print."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--output", type=click.Path(path_type=Path), help="Run folder, instead of its own.")
@click.option(
    "--rejudge",
    type=click.Path(path_type=Path),
    metavar="LOG",
    help="Judge a run's candidates again with the recipe's verifier, judge and objective.",
)
@click.option("--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("--json", "as_json", is_flag=True, help="Print progress and result as JSON lines.")
@_friendly
def run(recipe: str, overrides: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Searches for better pictures as a RECIPE says.

    RECIPE is a YAML file, or the name of a packaged one. OVERRIDES change it: strategy.n=16.
    The same command on the same folder continues a run that was stopped; with a larger
    strategy.n it draws the candidates that are missing. --rejudge draws nothing: the new run
    refers to the pictures of LOG.

    \b
    Example:
        tts-run bestofn strategy.n=4 seed=1 --output runs/first
        tts-run bestofn --rejudge runs/first --output runs/again
    """
    from tts_verifier.progress import shown_as
    from tts_verifier.recipe import load_recipe, run_recipe

    _calm_libraries()
    quiet, as_json = options["quiet"], options["as_json"]
    checked = load_recipe(recipe, overrides)
    with shown_as("none" if quiet else "json" if as_json else "auto") as progress:
        outcome = run_recipe(
            checked,
            output=output,
            rejudge=options["rejudge"],
            say=(lambda text: None) if quiet or as_json else click.echo,
            progress=progress,
        )
    if not quiet:
        click.echo(outcome.as_json() if as_json else outcome)


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--prompt", required=True, help="What the images should show.")
@click.option(
    "--verifier",
    default="shapes",
    show_default=True,
    help="A folder, a hub id, shapes, or a verifier's name in recipes.",
)
@click.option("--format", "form", type=click.Choice(["table", "jsonl"]), default="table")
@click.option(
    "--detail",
    type=click.Choice(["diagnose", "score"]),
    default="diagnose",
    show_default=True,
    help="score: the numbers only, quickly.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="A .jsonl or .parquet file to write, or to continue.",
)
@click.option("--top", type=click.IntRange(1), help="Print the best of them only.")
@_friendly
def score(images: tuple[str, ...], prompt: str, verifier: str, **options: Any) -> None:
    """Scores IMAGES against one prompt, best first.

    IMAGES are files, folders with images in them, or globs in quotes. With --output, a
    stopped command goes on where it was, and what is no picture is a row with its reason.

    \b
    Example:
        tts-score a.png b.png --prompt "a red circle" --format jsonl
        tts-score drawings/ "more/*.webp" --prompt "a red circle" --output scores.parquet
    """
    from tts_verifier.scoring import find_images, load_verifier, score_files, score_into, show

    _calm_libraries()
    paths, output, detail = find_images(images), options["output"], options["detail"]
    loaded = load_verifier(verifier)
    if output is None:
        rows = score_files(loaded, paths, prompt, detail=detail)
    else:
        rows = score_into(output, loaded, paths, prompt=prompt, detail=detail)
    click.echo(show(rows[: options["top"]], options["form"]))
    if output is not None:
        failed = sum("error" in row for row in rows)
        click.echo(f"{len(rows)} images, {failed} failed: {output}", err=True)


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="SVG file. [default: LOG/replay.svg]")
@_friendly
def replay(log: Path, plot: Path | None) -> None:
    """Tells from one run what fewer draws, or stopping early, would have given.

    LOG is the folder of a finished or running best_of_n. No model is loaded: the figures are
    exact expectations over all subsets of the draws that are there.

    \b
    Example:
        tts-replay runs/bestofn --plot replay.svg
    """
    from tts_verifier.replay import as_text, replay_log, write_plot

    done, path = replay_log(log), plot or log / "replay.svg"
    write_plot(done, path)
    click.echo(f"{as_text(done)}\n\nplot: {path}")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="[default: RUN/report.html]")
@click.option("--inline", is_flag=True, help="One file that holds thumbnails, to send or keep.")
@_friendly
def report(runs: tuple[Path, ...], output: Path | None, inline: bool) -> None:
    """Writes an HTML page about RUNS, finished or still running.

    The page links to the pictures in the run folders, unless --inline. Several runs are
    compared prompt by prompt with the first.

    \b
    Example:
        tts-report runs/bestofn runs/reroll --output compare.html
    """
    from tts_verifier.report import write_report

    path = output or runs[0] / "report.html"
    write_report(runs, path, inline=inline)
    click.echo(f"report: {path}")
