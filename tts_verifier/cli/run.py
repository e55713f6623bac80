"""`tts-run`: runs the search that a recipe describes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tts_verifier.cli.shared import PATH, at_once, quiet_libraries, say, tts_command

if TYPE_CHECKING:
    from tts_verifier.recipe import Outcome, Recipe
    from tts_verifier.runner.progress import Progress

NOTHING_USABLE: Final = 3
"""The exit status of a run that went to its end without one usable candidate."""


@at_once
def _show_list(_: str) -> None:
    from tts_verifier.cli.catalogue import catalogue_text

    say(catalogue_text())


@at_once
def _explain(what: str) -> None:
    from tts_verifier.cli.explain import explanation

    say(explanation(what))


@tts_command("tts-run")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--output", type=PATH, help="Run folder, in place of the recipe's.")
@click.option(
    "--rejudge",
    type=PATH,
    metavar="LOG",
    help="Verify a run's candidates again, with the recipe's verifier, judge and objective.",
)
@click.option(
    "--set",
    "subset",
    type=click.IntRange(min=1),
    metavar="K",
    help="Also write K good images of each prompt that differ, to OUTPUT/sets_of_K.",
)
@click.option(
    "--parallel",
    is_flag=False,
    flag_value="loky",
    metavar="[loky|ray|dask|N]",
    help="Run on several processes, GPUs or machines: an engine, or a number of workers.",
)
@click.option("--show-recipe", is_flag=True, help="Also print the whole recipe with its defaults.")
@click.option(
    "--quiet", is_flag=True, help="Print warnings and errors only; with --json, the result."
)
@click.option("--json", "as_json", is_flag=True, help="Print progress and result as JSON lines.")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_list,
    help="List recipes, strategies, verifiers and generators, and exit.",
)
@click.option(
    "--explain",
    is_eager=True,
    expose_value=False,
    callback=_explain,
    metavar="NAME",
    help="Explain a part's arguments, such as strategy.adaptive, and exit.",
)
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
    it is a number; parallel.gpus, parallel.shard, parallel.address and parallel.timeout are
    overrides.

    Exit status: 0 when done; 2 with a message when you must change something; 3 when it is done
    and no candidate is usable; 130 when stopped by Ctrl-C.

    \b
    Example:
        tts-run --list
        tts-run --explain strategy.adaptive
        tts-run bestofn strategy.n=4 seed=1 --output runs/first
        tts-run bestofn --rejudge runs/first --output runs/again
        tts-run bestofn --output runs/first --set 4
        tts-run bestofn --parallel ray parallel.workers=4 parallel.gpus=1
    """
    quiet, as_json = options["quiet"], options["as_json"]
    silent = quiet or as_json
    if not silent:
        # Before anything heavy is imported, which takes seconds.
        say(f"tts-run {recipe}: reading the recipe and loading its parts")
    quiet_libraries()
    from tts_verifier.recipe import load_recipe
    from tts_verifier.recipe.parallel_options import overrides_of
    from tts_verifier.runner.progress import progress_view

    if parallel is not None:
        overrides = (*overrides, *overrides_of(parallel))
    with progress_view("none" if quiet else "json" if as_json else "auto") as progress:
        checked = load_recipe(recipe, overrides)
        if not silent:
            say(checked.overview(options["rejudge"]))
        shown = options["show_recipe"] and not silent
        places = {"output": output, "rejudge": options["rejudge"], "subset": options["subset"]}
        outcome = _run(checked, progress, say if shown else lambda text: None, places)
    if as_json:
        say(outcome.as_json())
    elif not quiet:
        say(f"{outcome}\nnext: tts-report {shlex.quote(str(outcome.folder))}")
    if outcome.failure:
        say(f"Error: {outcome.failure}", err=True)
        sys.exit(NOTHING_USABLE)


def _run(recipe: Recipe, progress: Progress, show: Any, places: dict[str, Any]) -> Outcome:
    """Runs a recipe in one process, or on those that it names."""
    if recipe.parallel is None:
        from tts_verifier.recipe import run_recipe as run
    else:
        from tts_verifier.parallel import run_parallel as run
    return run(recipe, say=show, progress=progress, **places)
