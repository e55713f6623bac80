"""`tts-evaluate`: measures a verifier on rated pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tts_verifier.cli.shared import PATH, quiet_libraries, say, say_loading, tts_command


@tts_command("tts-evaluate")
@click.argument("data", type=PATH)
@click.option(
    "--verifier",
    default="shapes",
    show_default=True,
    help="A folder, a hub id, shapes, or the name of a verifier as in recipes.",
)
@click.option("--split", default="test", show_default=True, help="Of a folder: test, dev, train.")
@click.option(
    "--detail",
    type=click.Choice(["diagnose", "score"]),
    default="diagnose",
    show_default=True,
    help="score: only the numbers, which is faster.",
)
@click.option("--limit", type=click.IntRange(1), help="Measure on so many of the first pictures.")
@click.option("--images", type=PATH, help="[default: DATA/images]")
@click.option(
    "--prompts",
    type=PATH,
    help="A .jsonl or .parquet file with filename and prompt. [default: DATA/prompts]",
)
@click.option(
    "--score",
    "names",
    multiple=True,
    metavar="ASPECT=NAME",
    help="The verifier's name for an aspect, such as overall=overall_expected. Repeatable.",
)
@click.option(
    "--resolution",
    type=click.IntRange(2),
    default=384,
    show_default=True,
    help="Pixels along a side at which maps are compared.",
)
@click.option(
    "--output",
    "outputs",
    multiple=True,
    type=PATH,
    help="A .json file for the figures, a .parquet file for a row per picture. Repeatable.",
)
def evaluate_command(data: Path, verifier: str, split: str, **options: Any) -> None:
    """Measures how well a verifier agrees with the people who rated DATA.

    DATA is a folder in the format of RichHF-18K with its pictures and prompts, such as
    tts-train miniature-richhf writes, or one .tfrecord file of such a folder. The table has the
    four scores and both heatmaps, beside the published figures.

    \b
    Example:
        tts-evaluate runs/miniature-richhf --verifier shapes --limit 200
        tts-evaluate richhf/ --verifier GYX97/ImageDoctor --output figures.json
        tts-evaluate runs/miniature-richhf --verifier shapes-oracle --score semantic_alignment=score
    """
    say_loading("the verifier")
    from tts_verifier.errors import InputError
    from tts_verifier.evaluation.evaluate import evaluate, score_names
    from tts_verifier.evaluation.table import check_output, table_text, write_figures
    from tts_verifier.training.richhf.dataset import read_split
    from tts_verifier.verifiers.load import load_verifier

    quiet_libraries()
    # Before anything is paid for.
    for output in options["outputs"]:
        check_output(output)
    names = dict(text.partition("=")[::2] for text in options["names"])
    if not all(names.values()):
        raise InputError("--score must look like ASPECT=NAME, such as overall=overall_expected.")
    where = {name: options[name] for name in ("images", "prompts", "limit")}
    pictures = read_split(data, split, **where).pictures
    rated = evaluate(
        load_verifier(verifier),
        pictures,
        detail=options["detail"],
        names=names,
        resolution=options["resolution"],
        progress=lambda done: say(f"{done} of {len(pictures)} pictures", err=True),
    )
    say(table_text(verifier, rated, options["resolution"]))
    if not score_names(rated):
        say("No aspect has a score: name the verifier's own with --score.", err=True)
    for output in options["outputs"]:
        write_figures(output, verifier, rated, options["resolution"])
        say(f"figures: {output}", err=True)
