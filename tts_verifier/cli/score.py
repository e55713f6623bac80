"""`tts-score`: scores image files against a prompt, or a table of images and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tts_verifier.cli.shared import friendly_errors, quiet_libraries, say

if TYPE_CHECKING:
    from tts_verifier.scoring import Pair


@click.command("tts-score")
@click.argument("images", nargs=-1, required=True)
@click.option("--prompt", help="What the images should show; a table has its own prompts.")
@click.option(
    "--verifier",
    default="shapes",
    show_default=True,
    help="A folder, a hub id, shapes, the name of a verifier as in recipes, or a recipe's file.",
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
@click.option("--image-column", help="A table's column of paths, if its name is unusual.")
@click.option("--prompt-column", help="A table's column of prompts, if its name is unusual.")
@friendly_errors
def score_command(images: tuple[str, ...], prompt: str | None, **options: Any) -> None:
    """Scores IMAGES against a prompt, best first.

    IMAGES are files, folders of images, or globs in quotes; or tables (.csv, .tsv, .json, .jsonl,
    .ndjson, .parquet) with a column of paths, relative to the table, and one of prompts. An image
    that cannot be scored becomes a row with the reason. With --output, a command that was stopped
    continues.

    \b
    Example:
        tts-score a.png b.png --prompt "a red circle" --format jsonl
        tts-score images/ "more/*.webp" --prompt "a red circle" --output scores.parquet
        tts-score pairs.csv --output scores.jsonl
    """
    from tts_verifier.errors import InputError, readable_name
    from tts_verifier.scoring import (
        format_rows,
        score_files,
        score_into,
        score_pairs,
        score_pairs_into,
    )

    quiet_libraries()
    output, detail = options["output"], options["detail"]
    pairs, of_tables = _pairs(images, prompt, options)
    paths = [pair.image for pair in pairs]
    verifier = _verifier(options["verifier"])
    if of_tables and output is None:
        rows = score_pairs(verifier, pairs, detail=detail)
    elif of_tables:
        rows = score_pairs_into(output, verifier, pairs, detail=detail)
    elif output is None:
        rows = score_files(verifier, paths, prompt or "", detail=detail)
    else:
        rows = score_into(output, verifier, paths, prompt=prompt or "", detail=detail)
    failed = [row["error"] for row in rows if "error" in row]
    if failed and len(failed) == len(rows):
        raise InputError(f"None of {len(rows)} images could be scored. The first: {failed[0]}")
    say(format_rows(rows[: options["top"]], options["form"]))
    # To the standard error, because the standard output may go to a program.
    if output is not None:
        place = readable_name(output)
        say(f"{len(rows)} images, {len(failed)} failed: {place}", err=True)


def _verifier(name: str) -> Any:
    """Loads a verifier: of a recipe, with its objective, or by its name."""
    from tts_verifier.recipe import verifier_of_recipe
    from tts_verifier.verifiers.load import load_verifier

    if name.endswith((".yaml", ".yml")):
        return verifier_of_recipe(name)
    return load_verifier(name)


def _pairs(
    arguments: tuple[str, ...], prompt: str | None, options: dict[str, Any]
) -> tuple[list[Pair], bool]:
    """Returns the pairs of all arguments, and whether a table is among these."""
    from tts_verifier.errors import InputError
    from tts_verifier.scoring import find_images, is_table, pairs_of, read_pairs

    tables = [Path(name) for name in arguments if is_table(name)]
    patterns = [name for name in arguments if not is_table(name)]
    columns = {name: options[name] for name in ("image_column", "prompt_column")}
    pairs: list[Pair] = []
    if patterns:
        if prompt is None:
            raise InputError("Images need a --prompt that says what they should show.")
        pairs += pairs_of(find_images(patterns), prompt)
    for table in tables:
        # With images beside it, the prompt is theirs.
        shared = None if patterns else prompt
        pairs += read_pairs(table, prompt=shared, **columns)
    return pairs, bool(tables)
