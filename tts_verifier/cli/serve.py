"""`tts-serve`: a verifier behind HTTP."""

from __future__ import annotations

import os
from typing import Any

import click

from tts_verifier.cli.shared import quiet_libraries, say, say_loading, tts_command


@tts_command("tts-serve")
@click.option(
    "--verifier",
    default="shapes",
    show_default=True,
    help="A folder, a hub id, shapes, or the name of a verifier as in recipes.",
)
@click.option("--set", "options", multiple=True, help="An option of the verifier, as KEY=VALUE.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--max-body", type=click.IntRange(1), default=256, help="MiB of a request.")
@click.option("--max-memory", type=click.IntRange(1), default=4096, help="MiB of all requests.")
@click.option("--max-pixels", type=click.IntRange(1), help="Pixels of a picture.")
@click.option("--max-images", type=click.IntRange(1), help="Pictures of a request.")
@click.option("--max-prompt", type=click.IntRange(1), help="Characters of a prompt.")
@click.option("--max-queue", type=click.IntRange(1), help="Pictures that may wait.")
@click.option("--body-seconds", type=click.FloatRange(0.1), help="Time to send a request.")
@click.option("--answer-seconds", type=click.FloatRange(0.1), help="Time for the verifier.")
@click.option("--idle-seconds", type=click.FloatRange(0.1), help="Time without a request.")
def serve_command(verifier: str, options: tuple[str, ...], **values: Any) -> None:
    """Serves scores, reasons and heatmaps over HTTP, until SIGTERM or Ctrl-C.

    Trainers and OpenAI clients use it as tts_verifier/serve/SERVER.md says; Python and recipes use
    the verifier "remote". Start one process per GPU. Requests need the token that the environment
    variable TTS_SERVE_TOKEN holds, if there is one. No request can run code.

    \b
    Example:
        tts-serve --verifier shapes --port 8000
        CUDA_VISIBLE_DEVICES=1 tts-serve --verifier ./doctor --port 8001 --set precision=fp8
    """
    say_loading("the verifier")
    from tts_verifier.errors import InputError

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'tts-serve needs {error.name}. Install it with pip install "tts-verifier[serve]".'
        ) from error
    from tts_verifier.serve.options import limits_of, options_of
    from tts_verifier.serve.processes.verifier import ServerProcessError
    from tts_verifier.serve.server import serve
    from tts_verifier.verifiers.load import load_verifier
    from tts_verifier.verifiers.remote.protocol import TOKEN_VARIABLE, token_of

    quiet_libraries()
    # Before a model is loaded in vain.
    token = token_of(os.environ.get(TOKEN_VARIABLE))
    loaded = load_verifier(verifier, options=options_of(options))
    host, port = values.pop("host"), values.pop("port")
    try:
        serve(loaded, host=host, port=port, limits=limits_of(values), token=token)
    except ServerProcessError as error:
        say(f"Error: {error}", err=True)
        # Python would wait for a verifier that still works.
        os._exit(2)
