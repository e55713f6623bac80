"""`tts-score`: scores pictures against their prompts, and sorts or moves them by their scores."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tts_verifier.cli.shared import PATH, quiet_libraries, say, say_loading, tts_command

if TYPE_CHECKING:
    from tts_verifier.recipe.parallel_options import ParallelOptions
    from tts_verifier.scoring import Limit, Pair, PictureFolder, ScoreRow, ScoreSummary

_COUNT_SECONDS: Final = 30.0
"""Seconds between two lines that say how many pictures were read."""


@tts_command("tts-score")
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
    type=PATH,
    help="A .jsonl or .parquet file, or a folder of Parquet parts, to write or to continue.",
)
@click.option(
    "--parallel",
    is_flag=False,
    flag_value="loky",
    metavar="[loky|ray|dask|N]",
    help="Judge on several processes, GPUs or machines: an engine, or a number of workers.",
)
@click.option("--sort", default="objective", show_default=True, help="The score to sort by.")
@click.option("--top", type=click.IntRange(1), help="Only so many of the best.")
@click.option(
    "--set",
    "subset",
    type=click.IntRange(1),
    metavar="K",
    help="Only K good images of each prompt that differ from one another.",
)
@click.option(
    "--min", "least", multiple=True, metavar="SCORE=X", help="Only images with at least X."
)
@click.option("--max", "most", multiple=True, metavar="SCORE=X", help="Only images with X or less.")
@click.option("--move-to", type=PATH, help="Move the selected images to a folder.")
@click.option("--copy-to", type=PATH, help="Copy the selected images to a folder.")
@click.option("--dry-run", is_flag=True, help="Only say what would be moved or copied.")
@click.option("--image-column", help="A table's column of images, if its name is unusual.")
@click.option("--prompt-column", help="A table's column of prompts, if its name is unusual.")
def score_command(images: tuple[str, ...], prompt: str | None, **options: Any) -> None:
    """Scores IMAGES against a prompt, best first.

    IMAGES are files, folders of images, or globs in quotes; or tables (.csv, .tsv, .json, .jsonl,
    .ndjson, .parquet) with a column of paths, relative to the table, or in Parquet of bytes, and
    one of prompts; or .tar shards. An image that cannot be scored becomes a row with the reason.
    With --output, a command that was stopped continues. A folder as the output is for collections
    of any size: only what --top or --set selects is then sorted and printed.

    --parallel needs a folder as the output; parallel.workers=4, parallel.gpus=1, parallel.shard=512
    (pictures handed to a worker at a time), parallel.address=HOST:PORT and parallel.timeout=600
    (seconds for a batch) may stand among IMAGES.

    --min and --max select images by their scores; an image without that score is never selected.

    \b
    Example:
        tts-score a.png b.png --prompt "a red circle" --format jsonl
        tts-score images/ "more/*.webp" --prompt "a red circle" --output scores.parquet
        tts-score "shards/*.tar" --output scores/ --top 20
        tts-score "shards/*.tar" --output scores/ --parallel ray parallel.gpus=1
        tts-score images/ --prompt "a cat" --min overall=0.6 --move-to good/ --dry-run
        tts-score images/ --prompt "a cat" --set 4 --copy-to shown/
    """
    say_loading("the verifier")
    from tts_verifier.errors import InputError
    from tts_verifier.scoring import open_pairs, parse_limits
    from tts_verifier.scoring.thresholds import check_names

    quiet_libraries()
    engine, images = _engine_options(images, options)
    limits = parse_limits(options["least"], options["most"])
    folder = _picture_folder(options, limits)
    columns = {name: options[name] for name in ("image_column", "prompt_column")}
    source = open_pairs(images, prompt=prompt, **columns)
    if source.inside and (folder is not None or options["subset"]):
        raise InputError(
            "Only pictures that are files can be moved, copied or form a set, "
            f"{source.inside} has them inside."
        )
    names = [options["sort"], *(limit.name for limit in limits)]
    if engine is not None:
        rows = _rows_of_workers(CountedPairs(source), engine, names, options)
    else:
        verifier = _verifier(options["verifier"])
        check_names(names, verifier.score_names)
        has_prompts = source.has_prompts
        rows = _scored_rows(CountedPairs(source), verifier, options, prompts=has_prompts)
    _report(rows, limits, folder, options)


class CountedPairs:
    """Pairs of a collection; prints to the standard error, every half minute, how many were read.

    Args:
        pairs: taken one after the other, perhaps in another thread.
        clock: returns seconds that never go back.
    """

    def __init__(self, pairs: Iterable[Pair], clock: Callable[[], float] = time.monotonic) -> None:
        self._pairs, self._clock = pairs, clock
        self._count = self._count_said = 0
        self._said = clock()

    def __iter__(self) -> Iterator[Pair]:
        for pair in self._pairs:
            yield pair
            self._count += 1
            self.show()

    def show(self) -> None:
        """Prints a line if the last one is old enough, also where nothing new was read."""
        passed = self._clock() - self._said
        if passed >= _COUNT_SECONDS:
            rate = (self._count - self._count_said) / passed
            self._said, self._count_said = self._said + passed, self._count
            say(f"{self._count} pictures read, {rate:.1f} a second", err=True)


def _engine_options(
    images: tuple[str, ...], options: dict[str, Any]
) -> tuple[ParallelOptions | None, tuple[str, ...]]:
    """Returns what --parallel and parallel.… say, if they do, and the other arguments."""
    from tts_verifier.errors import InputError, suggestion
    from tts_verifier.recipe.parallel_options import ParallelOptions, overrides_of

    texts = [text for text in images if _is_engine_option(text)]
    texts += [] if options["parallel"] is None else overrides_of(options["parallel"])
    given = [text.partition("=")[::2] for text in texts]
    pairs = {key.removeprefix("parallel."): value for key, value in given}
    if not pairs:
        return None, images
    known = ParallelOptions.__dataclass_fields__
    for name in pairs:
        if name not in known:
            raise InputError(f"There is no option parallel.{name}. {suggestion(name, known)}")
    if not _is_folder(options["output"]):
        raise InputError("Several processes write a folder of parts. Give a folder as --output.")
    texts_of = ("engine", "address")
    values: dict[str, Any] = {
        k: int(v) if v.isdecimal() and k not in texts_of else v for k, v in pairs.items()
    }
    return ParallelOptions(**values), tuple(i for i in images if not _is_engine_option(i))


def _is_engine_option(argument: str) -> bool:
    return argument.startswith("parallel.") and "=" in argument


def _rows_of_workers(
    pairs: CountedPairs,
    engine_options: ParallelOptions,
    names: list[str],
    options: dict[str, Any],
) -> Iterable[ScoreRow]:
    from tts_verifier.parallel import hand_out, open_engine
    from tts_verifier.scoring import score_with_workers
    from tts_verifier.scoring.distributed import score_chunk

    with open_engine(engine_options, score_chunk) as engine:
        parts = score_with_workers(
            options["output"],
            partial(hand_out, engine, idle=pairs.show),
            _verifier,
            options["verifier"],
            pairs,
            detail=options["detail"],
            at_once=engine_options.shard,
            timeout=engine_options.timeout,
            names=names,
        )
    return parts.rows(whole=options["form"] == "jsonl")


def _verifier(name: str) -> Any:
    """Loads a verifier: of a recipe, with its objective, or by its name."""
    from tts_verifier.recipe import verifier_of_recipe
    from tts_verifier.verifiers.load import load_verifier

    if name.endswith((".yaml", ".yml")):
        return verifier_of_recipe(name)
    return load_verifier(name)


def _picture_folder(options: dict[str, Any], limits: list[Limit]) -> PictureFolder | None:
    """Returns where pictures are moved or copied to, if they are."""
    from tts_verifier.errors import InputError
    from tts_verifier.scoring import PictureFolder

    if options["top"] is not None and options["subset"] is not None:
        raise InputError("--top keeps the best, --set good and different ones. Give one of them.")
    move, copy, dry_run = (options[name] for name in ("move_to", "copy_to", "dry_run"))
    if move is not None and copy is not None:
        raise InputError("Pictures are moved or copied. Give one of --move-to and --copy-to.")
    if move is None and copy is None:
        if dry_run:
            raise InputError("--dry-run says what --move-to or --copy-to would do. Give one.")
        return None
    if not limits and options["top"] is None and options["subset"] is None:
        raise InputError("Say which pictures are meant: give --min, --max, --top or --set.")
    return PictureFolder(move or copy, copies=copy is not None, dry_run=dry_run)


def _scored_rows(
    pairs: Iterable[Pair], verifier: Any, options: dict[str, Any], *, prompts: bool
) -> Iterable[ScoreRow]:
    from tts_verifier.scoring import PairScorer, score_into_parts, score_pairs_into, scored

    output, detail = options["output"], options["detail"]
    if output is None:
        return scored(PairScorer(verifier, detail, prompts=prompts), pairs)
    if _is_folder(output):
        parts = score_into_parts(output, verifier, pairs, detail=detail)
        return parts.rows(whole=options["form"] == "jsonl")
    return score_pairs_into(output, verifier, pairs, detail=detail, prompts=prompts)


def _is_folder(output: Path | None) -> bool:
    return output is not None and (os.path.isdir(output) or not output.suffix)


def _report(
    rows: Iterable[ScoreRow],
    limits: list[Limit],
    folder: PictureFolder | None,
    options: dict[str, Any],
) -> None:
    """Prints rows, moves or copies their pictures, and says how many there are."""
    from tts_verifier.errors import readable_name
    from tts_verifier.scoring import ScoreSummary, format_rows, within

    output = options["output"]
    # A million rows are neither sorted nor printed.
    streams = _is_folder(output) and options["top"] is None and options["subset"] is None
    summary = ScoreSummary()
    chosen: Iterable[ScoreRow] = (row for row in summary.counted(rows) if within(row, limits))
    if not streams:
        chosen = _kept_rows(chosen, options)
        _check_summary(summary, limits, options["sort"])
    if folder is not None:
        count = _place(chosen, folder, options)
    elif streams:
        count = sum(1 for _ in chosen)
    else:
        say(format_rows(list(chosen), options["form"]))
    # To the standard error, because the standard output may go to a program.
    if streams:
        _check_summary(summary, limits, options["sort"])
        say(summary.table(), err=True)
    if output is not None:
        place = readable_name(output)
        say(f"{summary.count} images, {summary.failed} failed: {place}", err=True)
    if streams and limits:
        say(f"{count} of them are within the limits.", err=True)
    if folder is not None:
        action = "copied" if options["copy_to"] else "moved"
        would = "would be" if options["dry_run"] else "were"
        say(f"{count} images {would} {action} to {readable_name(folder.folder)}.", err=True)


def _kept_rows(rows: Iterable[ScoreRow], options: dict[str, Any]) -> list[ScoreRow]:
    """Returns the rows best first: all of them, some of the best, or a set of each prompt."""
    from tts_verifier.scoring import best_rows, rows_of_sets, sorted_rows

    if options["subset"]:
        return rows_of_sets(rows, options["subset"], options["sort"])
    by, top = options["sort"], options["top"]
    return best_rows(rows, top, by) if top else sorted_rows(list(rows), by)


def _check_summary(summary: ScoreSummary, limits: list[Limit], by: str) -> None:
    """Raises InputError where no picture could be scored, or none has a score that is named."""
    from tts_verifier.errors import InputError
    from tts_verifier.scoring.thresholds import check_names

    if summary.failed and summary.failed == summary.count:
        raise InputError(
            f"None of {summary.count} images could be scored. The first: {summary.first_error}"
        )
    check_names([by, *(limit.name for limit in limits)], list(summary.values))


def _place(rows: Iterable[ScoreRow], folder: PictureFolder, options: dict[str, Any]) -> int:
    """Moves or copies the pictures of rows, prints where they are, and returns how many these are.

    A picture whose score is not known stays where it is.
    """
    from tts_verifier.errors import readable_name
    from tts_verifier.scoring import format_rows
    from tts_verifier.scoring.rows import value_of

    count = 0
    for row in rows:
        value = value_of(row, options["sort"])
        if math.isnan(value) or (goal := folder.take(row["image"])) is None:
            continue
        count += 1
        to = readable_name(goal)
        if options["form"] == "jsonl":
            say(format_rows([{**row, "to": to}], "jsonl"))
        else:
            say(f"{value:.3f}  {row['image']} -> {to}")
    return count
