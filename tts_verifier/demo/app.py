"""The page's inputs and outputs in Gradio. Importing this file imports Gradio."""

# No `from __future__ import annotations`: Gradio reads the types of parameters.

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from tts_verifier.demo.page import Page, status
from tts_verifier.demo.search import Snapshot, search
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.runner import RunSetup


class Searches:
    """The searches of all visitors; Gradio runs one at a time."""

    def __init__(
        self, setup: RunSetup, strategies: Mapping[str, Callable[[int], Any]], most: int
    ) -> None:
        self.setup, self.strategies, self.most = setup, strategies, most
        self._stops: dict[str | None, threading.Event] = {}

    def run(
        self, prompt: str, name: str, n: float, seed: float | None, visitor: str | None
    ) -> Iterator[tuple[str, str, Any]]:
        """Yields the line of text, the pictures and the best one after every change."""
        page, most = Page(), int(n)
        stop = self._stops[visitor] = threading.Event()
        try:
            setup = self._limited(name, most, seed)
        except (InputError, UnsupportedError) as error:
            yield str(error), page.html(Snapshot()), None
            return
        shown: str | None = ""
        for now in search(setup, prompt, stop):
            # The same image again would be written anew to the file that a browser is reading.
            image = gr.skip() if now.best == shown else _best_image(now)
            shown = now.best
            yield status(now, most), page.html(now), image

    def stop(self, visitor: str | None) -> None:
        """Ends a visitor's search between two batches."""
        if visitor in self._stops:
            self._stops[visitor].set()

    def _limited(self, name: str, n: int, seed: float | None) -> RunSetup:
        if name not in self.strategies or not 1 <= n <= self.most:
            raise InputError(
                f"A search needs a strategy of the list and 1 to {self.most} candidates, got "
                f"{name!r} and {n}."
            )
        given = self.setup.budget.candidates
        candidates = n if given is None else min(n, given)
        return replace(
            self.setup,
            strategy=self.strategies[name](n),
            seed=0 if seed is None else int(seed),
            budget=replace(self.setup.budget, candidates=candidates),
        )


def _best_image(now: Snapshot) -> Any:
    """Returns the best image in its full size; None until there is one."""
    best = next((trial for trial in now.candidates if trial.id == now.best), None)
    return None if best is None or best.image is None else best.image.load()


def build_page(searches: Searches, prompts: Sequence[str]) -> Any:
    """Returns Gradio's page, which is not served yet.

    Args:
        searches: what its buttons start and stop.
        prompts: examples to click on.
    """
    names = list(searches.strategies)
    with gr.Blocks(title="tts-verifier", analytics_enabled=False) as app:
        gr.Markdown(
            "# Test-time scaling\nDraw several candidates, let the verifier judge, keep one."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                text = prompts[0] if prompts else ""
                prompt = gr.Textbox(text, label="Prompt", lines=2, elem_id="prompt")
                name = gr.Dropdown(names, value=names[0], label="Strategy", elem_id="strategy")
                n = gr.Slider(
                    1, searches.most, value=min(8, searches.most), step=1, label="Candidates, n"
                )
                seed = gr.Number(0, precision=0, label="Seed: the same one gives the same pictures")
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    stop = gr.Button("Stop", elem_id="stop")
                # Without the button that uploads an image to share it.
                best = gr.Image(
                    label="The best one",
                    interactive=False,
                    format="png",
                    buttons=["download", "fullscreen"],
                    elem_id="best",
                )
                if prompts:
                    gr.Examples([[text] for text in prompts], [prompt], cache_examples=False)
            with gr.Column(scale=2, min_width=300):
                said = gr.Textbox(label="Search", lines=2, interactive=False, elem_id="status")
                pictures = gr.HTML(elem_id="candidates")

        def searched(
            prompt: str, name: str, n: float, seed: float | None, request: gr.Request
        ) -> Iterator[tuple[str, str, Any]]:
            yield from searches.run(prompt, name, n, seed, request.session_hash)

        def stopped(request: gr.Request) -> None:
            searches.stop(request.session_hash)

        # One search at a time: they share the models.
        shared: dict[str, Any] = {"concurrency_limit": 1, "show_progress": "hidden"}
        values, shown = [prompt, name, n, seed], [said, pictures, best]
        gr.on([draw.click, prompt.submit], searched, values, shown, **shared)
        stop.click(stopped, None, None, queue=False)
    return app


def _check_address(host: str, port: int | None) -> None:
    """Raises OSError if nothing can listen there; port None = any."""
    found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)
    for left, (family, *_, address) in enumerate(reversed(found)):
        try:
            socket.create_server(address[:2], family=family).close()
            return
        except OSError:
            # A name such as localhost may have an address of a kind that this machine lacks.
            if left == len(found) - 1:
                raise


def serve_page(app: Any, *, host: str, port: int | None, open_browser: bool, block: bool) -> Any:
    """Serves a page; see `launch` for the arguments.

    Raises:
        InputError: the host or the port cannot be used.
    """
    # Named fonts: those of gradio's own theme are fetched from a server of fonts.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        # Gradio would try each of its hundred ports for seconds at an address of another machine.
        _check_address(host, port)
        app.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(**fonts),
        )
    except OSError as error:
        raise InputError(
            f"The demo needs an address of this machine with a free port, and {host} with "
            f"{port or 'a port from 7860 to 7959'} cannot be used: {str(error).rstrip('.')}. Name "
            "another host, or another port, or none to search for one."
        ) from error
    print(f"The demo is at {app.local_url} (Ctrl-C ends it).", flush=True)
    try:
        while block and app.is_running:
            time.sleep(0.1)
    except KeyboardInterrupt:
        app.close(verbose=False)
    return app
