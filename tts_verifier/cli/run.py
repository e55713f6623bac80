"""`tts-run`: runs the search that a recipe describes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click

from tts_verifier.cli.shared import friendly_errors, quiet_libraries, say

NOTHING_USABLE: Final = 3
"""The exit status of a run that went to its end without one usable candidate."""


@click.command("tts-run")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Run folder, in place of the recipe's."
)
@click.option(
    "--rejudge",
    type=click.Path(path_type=Path),
    metavar="LOG",
    help="Verify a run's candidates again, with the recipe's verifier, judge and objective.",
)
@click.option(
    "--set",
    "subset",
    type=click.IntRange(min=1),
    metavar="K",
    help="Also write K good and different images of each prompt, to OUTPUT/sets_of_K.",
)
@click.option(
    "--parallel",
    is_flag=False,
    flag_value="loky",
    metavar="[loky|ray|dask|N]",
    help="Run on several processes, GPUs or machines: an engine, or a number of workers.",
)
@click.option("--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("--json", "as_json", is_flag=True, help="Print progress and result as JSON lines.")
@friendly_errors
def run_command(
    recipe: str,
    overrides: tuple[str, ...],
    output: Path | None,
    parallel: str | None,
    **options: Any,
) -> None:
    """Runs the search for better images that RECIPE describes.

    RECIPE is a YAML file, or the name of a packaged one. OVERRIDES such as strategy.n=16 change it.
    The same command on the same folder continues a run that was stopped; with a larger
    strategy.n it generates only the missing candidates. --rejudge generates nothing: the new
    run gets copies of the images of LOG. --parallel sets parallel.engine, or parallel.workers if
    it is a number; parallel.gpus, parallel.shard and parallel.address are overrides.

    Exit status: 0 when done; 2 with a message when something must be changed; 3 when it is done
    and no candidate is usable; 130 when stopped by Ctrl-C.

    \b
    Example:
        tts-run bestofn strategy.n=4 seed=1 --output runs/first
        tts-run bestofn --rejudge runs/first --output runs/again
        tts-run bestofn --output runs/first --set 4
        tts-run bestofn --parallel ray parallel.workers=4 parallel.gpus=1
    """
    from tts_verifier.recipe import load_recipe, run_recipe
    from tts_verifier.recipe.parallel_options import overrides_of
    from tts_verifier.runner.progress import progress_view

    quiet_libraries()
    quiet, as_json = options["quiet"], options["as_json"]
    if parallel is not None:
        overrides = (*overrides, *overrides_of(parallel))
    checked = load_recipe(recipe, overrides)
    if checked.parallel is None:
        run = run_recipe
    else:
        from tts_verifier.parallel import run_parallel as run
    with progress_view("none" if quiet else "json" if as_json else "auto") as progress:
        outcome = run(
            checked,
            output=output,
            rejudge=options["rejudge"],
            subset=options["subset"],
            say=(lambda text: None) if quiet or as_json else say,
            progress=progress,
        )
    if not quiet:
        say(outcome.as_json() if as_json else outcome)
    if outcome.failure:
        say(f"Error: {outcome.failure}", err=True)
        sys.exit(NOTHING_USABLE)
