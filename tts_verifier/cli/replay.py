"""`tts-replay`: computes from one run what fewer candidates would have given."""

from __future__ import annotations

from pathlib import Path

import click

from tts_verifier.cli.shared import PATH, say, tts_command


@tts_command("tts-replay")
@click.argument("log", type=PATH)
@click.option("--plot", type=PATH, help="SVG file. [default: LOG/replay.svg]")
def replay_command(log: Path, plot: Path | None) -> None:
    """Computes from one run what fewer candidates, or stopping early, would have given.

    LOG is the folder of a best_of_n run, finished or still running. No model is loaded: the
    figures are exact expectations over all subsets of the recorded draws. From the log of a
    successive_halving run with `keep: 1` and 8 prompts or more, it also finds schedules: how many
    draws to start with, and what share to keep after each preview.

    \b
    Example:
        tts-replay runs/bestofn --plot replay.svg
    """
    from tts_verifier.analysis.replay import replay_log
    from tts_verifier.analysis.replay_output import replay_text, write_plot

    result, path = replay_log(log), plot or log / "replay.svg"
    write_plot(result, path)
    say(f"{replay_text(result)}\n\nplot: {path}")
