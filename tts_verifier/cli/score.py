"""`tts-score`: scores image files against one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tts_verifier.cli.shared import friendly_errors, quiet_libraries


@click.command("tts-score")
@click.argument("images", nargs=-1, required=True)
@click.option("--prompt", required=True, help="What the images should show.")
@click.option(
    "--verifier",
    default="shapes",
    show_default=True,
    help="A folder, a hub id, shapes, or the name of a verifier as in recipes.",
)
@click.option("--format", "form", type=click.Choice(["table", "jsonl"]), default="table")
@click.option(
    "--detail",
    type=click.Choice(["diagnose", "score"]),
    default="diagnose",
    show_default=True,
    help="score: only the numbers, which is faster.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="A .jsonl or .parquet file to write, or to continue.",
)
@click.option("--top", type=click.IntRange(1), help="Print only the best of them, this many.")
@friendly_errors
def score_command(images: tuple[str, ...], prompt: str, verifier: str, **options: Any) -> None:
    """Scores IMAGES against one prompt, best first.

    IMAGES are files, folders of images, or globs in quotes. With --output, a command that was
    stopped continues, and a file that is not an image becomes a row with the reason.

    \b
    Example:
        tts-score a.png b.png --prompt "a red circle" --format jsonl
        tts-score images/ "more/*.webp" --prompt "a red circle" --output scores.parquet
    """
    from tts_verifier.scoring import find_images, format_rows, score_files, score_into
    from tts_verifier.verifiers.load import load_verifier

    quiet_libraries()
    paths, output, detail = find_images(images), options["output"], options["detail"]
    loaded = load_verifier(verifier)
    if output is None:
        rows = score_files(loaded, paths, prompt, detail=detail)
    else:
        rows = score_into(output, loaded, paths, prompt=prompt, detail=detail)
    click.echo(format_rows(rows[: options["top"]], options["form"]))
    # To the standard error, because the standard output may go to a program.
    if output is not None:
        failed = sum("error" in row for row in rows)
        click.echo(f"{len(rows)} images, {failed} failed: {output}", err=True)
