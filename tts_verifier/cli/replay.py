"""`tts-replay`: tells from one run what fewer draws would have given."""

from __future__ import annotations

from pathlib import Path

import click

from tts_verifier.cli.shared import friendly_errors


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="SVG file. [default: LOG/replay.svg]")
@friendly_errors
def replay(log: Path, plot: Path | None) -> None:
    """Tells from one run what fewer draws, or stopping early, would have given.

    LOG is the folder of a finished or running best_of_n. No model is loaded: the figures are
    exact expectations over all subsets of the draws that are there.

    \b
    Example:
        tts-replay runs/bestofn --plot replay.svg
    """
    from tts_verifier.analysis.replay import as_text, replay_log, write_plot

    done, path = replay_log(log), plot or log / "replay.svg"
    write_plot(done, path)
    click.echo(f"{as_text(done)}\n\nplot: {path}")
