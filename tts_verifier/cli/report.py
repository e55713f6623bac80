"""`tts-report`: writes an HTML page about runs."""

from __future__ import annotations

from pathlib import Path

import click

from tts_verifier.cli.shared import PATH, say, tts_command


@tts_command("tts-report")
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--output", type=PATH, help="[default: RUN/report.html]")
@click.option(
    "--inline",
    is_flag=True,
    help="Write thumbnails into the page, so that the images of the runs are not needed.",
)
def report_command(runs: tuple[Path, ...], output: Path | None, inline: bool) -> None:
    """Writes an HTML page about RUNS, finished or still running.

    The page links to the images in the run folders, unless --inline is given. Several runs are
    compared with the first one, prompt by prompt. With more than 4,096 candidates, further pages
    are written into a folder beside the page; keep the two together.

    The folder of a training run gives one page that needs no other file: what was trained, a
    curve of every metric, and what the trained verifier says of held-out pictures.

    \b
    Example:
        tts-report runs/bestofn runs/reroll --output compare.html
        tts-report runs/cold-start-2
    """
    from tts_verifier.analysis.report import write_report

    path = output or runs[0] / "report.html"
    pages = write_report(runs, path, inline=inline)
    say(f"report: {path}")
    if len(pages) > 1:
        say(f"{len(pages) - 1} more pages: {pages[1].parent}")
