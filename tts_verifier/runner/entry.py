"""`run` and `execute`: from prompts and parts to a result, with or without a run folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Unpack

from tts_verifier.errors import InputError, RunWarning, suggestion
from tts_verifier.interfaces import Extendable, Generator, Strategy, Verifier
from tts_verifier.loading.regular_files import output_path
from tts_verifier.log import RunLog, open_log
from tts_verifier.runner.devices import placed
from tts_verifier.runner.loop import Loop
from tts_verifier.runner.options import RunOptions
from tts_verifier.runner.progress import Progress, progress_view
from tts_verifier.runner.prompts import as_prompts
from tts_verifier.runner.result import RunResult
from tts_verifier.runner.setup import RunSetup
from tts_verifier.types import Prompt

_INTERRUPTED: Final = (
    "The generator was interrupted: the search ends with what is there. Unfinished candidates are "
    "not chosen, and not logged; the same call continues a run folder."
)


def run(
    prompts: Iterable[Prompt | str],
    generator: Generator,
    verifier: Verifier,
    strategy: Strategy,
    **options: Unpack[RunOptions],
) -> RunResult:
    """Searches for a good image for every prompt.

    Several threads may call this at once, even with the same generator and verifier if these allow
    it, but not if generator and verifier take turns on a device.

    Args:
        prompts: texts, or prompts with ids and categories, or a table or a file of them; see
            `as_prompts`.
        generator: carries out proposals.
        verifier: scores the images.
        strategy: decides what to generate next.
        options: `objective`, `budget`, `judge`, `detail`, `looks`, `ties`, `near`, `comparer`,
            `overlap`, `seed`, `folder` (the run folder; None = no log) and `progress`; see
            `tts_verifier.runner.RunOptions`.

    Returns:
        The choices, their images and all trials, by prompt; read from the folder if there is one.

    Raises:
        InputError: a prompt, an option or a limit is not usable, or a proposal is wrong.
        UnsupportedError: the generator cannot carry out what the strategy needs.
        RunError: the folder belongs to another run, or cannot be written; or a run that is under
            way shares a part that takes turns on a device.
    """
    if unknown := [name for name in options if name not in RunOptions.__annotations__]:
        raise InputError(
            f"run does not take {unknown[0]}. {suggestion(unknown[0], RunOptions.__annotations__)}"
        )
    folder = options.pop("folder", None)
    progress = progress_view("auto") if options.pop("progress", False) else None
    setup = RunSetup(generator, verifier, strategy, **options)  # type: ignore[misc, arg-type]
    return execute(setup, as_prompts(prompts), folder=folder, progress=progress)


def execute(
    setup: RunSetup,
    prompts: Sequence[Prompt],
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    recipe: Mapping[str, Any] | None = None,
    holder: Mapping[str, Any] | None = None,
) -> RunResult:
    """Runs to the end; continues the run that the folder holds, if it holds one.

    Args:
        setup: the parts of the run.
        prompts: from `as_prompts`.
        folder: the run folder; None = no log.
        progress: counts and displays the progress; None = no display.
        recipe: JSON values for the header; a folder of another recipe is refused.
        holder: JSON values about this process that the folder's lock names too.
    """
    setup.check()
    # Absolute: results are read from the folder later, when the working folder may be another.
    path = None if folder is None else output_path(folder).absolute()
    # On exit, in reverse: parts return to their devices, the display ends, the log is closed.
    with ExitStack() as stack:
        log = None
        if path is not None:
            about = {"recipe": recipe, **setup.about(prompts)}
            grows = setup.strategy.grows if isinstance(setup.strategy, Extendable) else ()
            settings = setup.generator.settings
            log = open_log(path, about, settings, grows=grows, holder=holder)
            stack.enter_context(log)
        progress = stack.enter_context(progress or Progress())
        placement = stack.enter_context(placed(setup))
        loop = Loop(setup, prompts, log=log, progress=progress, placement=placement)
        began = time.perf_counter()
        loop.run()
        # A run that finds everything in the log may take no measurable time.
        wall = max(time.perf_counter() - began, 1e-9)
        if loop.interrupted:
            warnings.warn(_INTERRUPTED, RunWarning, stacklevel=2)
        elif log is not None:
            progress.phase("finish")
            _finish_log(log, loop, wall)
    busy = {side: seconds / wall for side, seconds in loop.seconds.items()}
    results = [loop.results[prompt.id] for prompt in prompts]
    return RunResult(results, path, busy, interrupted=loop.interrupted)


def _finish_log(log: RunLog, loop: Loop, wall: float) -> None:
    """Marks the chosen trials and notes in the header how this process spent its time."""
    chosen = {result.chosen for result in loop.results.values() if result.chosen}
    session = {
        "seconds": wall,
        "busy": {side: seconds / wall for side, seconds in loop.seconds.items()},
        "plan": loop.placement.plan,
        "devices": loop.placement.devices,
        "overlap": loop.placement.overlap,
        "moves": loop.placement.moves,
    }
    # A process that found every trial in the log has nothing to note.
    objectives = {k: v for r in loop.results.values() for k, v in r.relative_objectives().items()}
    log.finish(chosen, session if any(loop.seconds.values()) else None, objectives=objectives)
