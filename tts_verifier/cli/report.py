"""`tts-report`: writes an HTML page about runs."""

from __future__ import annotations

from pathlib import Path

import click

from tts_verifier.cli.shared import friendly_errors


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="[default: RUN/report.html]")
@click.option("--inline", is_flag=True, help="One file that holds thumbnails, to send or keep.")
@friendly_errors
def report(runs: tuple[Path, ...], output: Path | None, inline: bool) -> None:
    """Writes an HTML page about RUNS, finished or still running.

    The page links to the pictures in the run folders, unless --inline. Several runs are
    compared prompt by prompt with the first.

    \b
    Example:
        tts-report runs/bestofn runs/reroll --output compare.html
    """
    from tts_verifier.analysis.report import write_report

    path = output or runs[0] / "report.html"
    write_report(runs, path, inline=inline)
    click.echo(f"report: {path}")
