"""`tts-demo`: a page in the browser that searches for the best image of a prompt."""

from __future__ import annotations

import click

from tts_verifier.cli.shared import quiet_libraries, tts_command


@tts_command("tts-demo")
@click.argument("recipe", default="bestofn")
@click.argument("overrides", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: the first free from 7860.")
@click.option(
    "--most",
    type=click.IntRange(2),
    default=16,
    show_default=True,
    help="The largest n on the page.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def demo_command(
    recipe: str,
    overrides: tuple[str, ...],
    host: str,
    port: int | None,
    most: int,
    open_browser: bool,
) -> None:
    """Opens a page: type a prompt, choose n and a strategy, watch the candidates appear.

    Generator, verifier, judge, objective, strategy and example prompts are those of RECIPE, a file
    or the name of a packaged one; OVERRIDES change it as for tts-run. Without RECIPE the bundled
    models draw coloured shapes, offline. The page has no password and sends nothing anywhere.
    Ctrl-C ends it.

    \b
    Example:
        tts-demo --open
        tts-demo sdxl generator.steps=20
    """
    from tts_verifier.demo import launch
    from tts_verifier.demo.entry import require_gradio
    from tts_verifier.recipe import load_recipe

    quiet_libraries()
    # Before models are loaded in vain.
    require_gradio()
    checked = load_recipe(recipe, overrides)
    generator = checked.sections["generator"]
    if "batch_size" in generator.resolved() and "batch_size" not in generator.values:
        # One candidate at a time, so that each one is shown as soon as possible.
        checked = load_recipe(recipe, [*overrides, "generator.batch_size=1"])
    # From the last one back: recipes put what is easy first.
    prompts = [prompt.text for prompt in checked.prompts[:-9:-1]]
    launch(
        checked.build(),
        prompts=prompts,
        most=most,
        host=host,
        port=port,
        open_browser=open_browser,
    )
