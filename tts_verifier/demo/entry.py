"""Builds the page with Gradio and serves it on this machine; nothing is sent anywhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Unpack

from tts_verifier import Adaptive, BestOfN, DiffusersGenerator, InpaintReroll
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.runner import RunSetup
from tts_verifier.runner.options import SearchOptions
from tts_verifier.runner.setup import check_needs, known_scores
from tts_verifier.verified import VerifiedPipeline, wrap

Menu = Mapping[str, Callable[[int], Any]]
"""What the page calls a strategy -> n, the largest number of candidates -> the strategy."""

_PERFECT: Final = 0.99
"""From this semantic alignment on nothing is missing; see recipes/adaptive.yaml."""
_WORTH: Final = 0.005
"""Of one more draw, in units of the objective, where a verifier has no semantic alignment."""
_SHAPE_PROMPTS: Final = (
    "a red circle left of a blue square",
    "four red squares",
    "a red triangle and a cyan star",
    "a black triangle",
)


def launch(
    pipeline: Any = "shapes",
    verifier: Any = None,
    *,
    call: Mapping[str, Any] | None = None,
    strategies: Menu | None = None,
    prompts: Sequence[str] = (),
    most: int = 16,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    block: bool = True,
    **options: Unpack[SearchOptions],
) -> Any:
    """Serves a page that searches for the best image of a prompt, until Ctrl-C.

    The pictures appear as they are drawn, with their scores; the mouse or a finger on one shows
    its maps; the best one is marked. Searches of several visitors wait for each other. The page
    sends nothing to anybody and loads nothing from elsewhere; it has no password, so anybody who
    reaches `host` may use it.

    Args:
        pipeline: a diffusers pipeline, loaded or by name ("shapes" is the bundled one); a wrapped
            one, or a `RunSetup`, which bring verifier, strategy and options; or a `Generator`.
        verifier: a verifier, or a name for `Verifier.from_pretrained`. None = the one that
            `pipeline` brings, or the bundled one for "shapes".
        call: arguments of the pipeline's call, such as `num_inference_steps`.
        strategies: the choice of strategies; None = best of n, adaptive, and repainting where the
            generator can repaint. The strategy that `pipeline` brings comes first. Whatever the
            strategy, no more candidates are drawn than the page's slider says.
        prompts: examples to click on.
        most: the end of the slider.
        host: the address to listen on; "0.0.0.0" = reachable from other machines.
        port: None = the first free one from 7860 on.
        open_browser: whether to open the page.
        block: whether to return only when it is over.
        options: as for `wrap`.

    Returns:
        Gradio's `Blocks`; its `local_url` is the address, and `close()` ends it.

    Raises:
        InputError: gradio is not installed, or an argument, the host or the port cannot be used.
        CheckpointError: a model cannot be loaded.
    """
    require_gradio()
    # bool is a subclass of int.
    if isinstance(most, bool) or not isinstance(most, int) or most < 2:
        raise InputError(f"most must be an integer of at least 2, got {most!r}.", argument="most")
    bundled = isinstance(pipeline, str) and pipeline == "shapes"
    if bundled and verifier is None:
        verifier = "shapes"
    setup = _searched_with(pipeline, verifier, call, dict(options))
    setup.check()
    from tts_verifier.demo.app import Searches, build_page, serve_page

    searches = Searches(setup, _offered(strategies, setup), most)
    app = build_page(searches, prompts or (_SHAPE_PROMPTS if bundled else ()))
    return serve_page(app, host=host, port=port, open_browser=open_browser, block=block)


def require_gradio() -> None:
    """Imports gradio, with its analytics off; raises InputError where it is missing."""
    # Read when gradio is imported; it would report every start of the page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'The demo needs {error.name}. Install it with pip install "tts-verifier[demo]".'
        ) from error


def _searched_with(
    pipeline: Any, verifier: Any, call: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> RunSetup:
    """Returns the parts of every search."""
    if isinstance(pipeline, RunSetup | VerifiedPipeline):
        if verifier is not None or options:
            raise InputError(
                f"A {type(pipeline).__name__} brings its verifier and options. Pass it alone, or "
                "the pipeline without its wrapper."
            )
        return _of_wrapped(pipeline, call) if isinstance(pipeline, VerifiedPipeline) else pipeline
    if all(hasattr(pipeline, name) for name in ("generate", "supports", "settings")):
        if call is not None:
            raise InputError("call belongs to a diffusers pipeline; a generator has its own.")
        if verifier is None or isinstance(verifier, str | Path):
            raise InputError(
                f"verifier must be a Verifier beside a generator, got {verifier!r}. Load it with "
                "Verifier.from_pretrained."
            )
        return RunSetup(pipeline, verifier, BestOfN(), **options)
    if verifier is None:
        raise InputError('A pipeline needs a verifier, such as "GYX97/ImageDoctor", got none.')
    # One candidate at a time, so that each one is shown as soon as possible.
    generator = DiffusersGenerator(pipeline, call=call, batch_size=1)
    # Wrapped, so that the verifier is loaded and the options are checked as `wrap` does.
    return RunSetup(
        generator, wrap(generator.pipe, verifier, **options).verifier, BestOfN(), **options
    )


def _of_wrapped(wrapped: VerifiedPipeline, call: Mapping[str, Any] | None) -> RunSetup:
    generator = DiffusersGenerator(
        wrapped.pipe, call=call, batch_size=wrapped.batch_size or 1, inpaint=wrapped.inpaint
    )
    # `RunSetup` takes weights as an objective too.
    options: Any = wrapped.options
    return RunSetup(generator, wrapped.verifier, wrapped.strategy, **options)


def _strategies(verifier: Any) -> Menu:
    """Returns the choice of strategies for a verifier."""
    aligned = "semantic_alignment" in (known_scores(verifier) or ())

    def adaptive(n: int) -> Any:
        if aligned:
            return Adaptive(BestOfN(n), {"semantic_alignment": _PERFECT}, at_once=1)
        return Adaptive(BestOfN(n), cost=_WORTH, at_once=1)

    return {
        "best of n": BestOfN,
        "adaptive: stops when one is good enough": adaptive,
        # The budget ends it after n candidates.
        "inpaint and reroll: repaints the flaws": lambda n: InpaintReroll(max(n // 4, 1), n),
    }


def _offered(strategies: Menu | None, setup: RunSetup) -> dict[str, Callable[[int], Any]]:
    """Returns the strategies to choose from, the one of `setup` first.

    Raises:
        UnsupportedError: the generator can serve none of those given.
    """
    if strategies is not None:
        for make in strategies.values():
            check_needs(make(2), setup.generator)
        return dict(strategies)
    found: dict[str, Callable[[int], Any]] = {}
    # "best of n" would be the same strategy with another n.
    if not isinstance(setup.strategy, BestOfN):
        found[f"{type(setup.strategy).__name__}, as configured"] = lambda n: setup.strategy
    for name, make in _strategies(setup.verifier).items():
        # A generator may be unable to repaint.
        with suppress(UnsupportedError):
            check_needs(make(2), setup.generator)
            found[name] = make
    return found
