"""`tts-train`: makes training data and trains models."""

from __future__ import annotations

import click

from tts_verifier.cli.shared import quiet_libraries, say_loading, tts_command


@tts_command("tts-train")
@click.argument("entry")
@click.argument("config")
@click.argument("overrides", nargs=-1)
def train_command(entry: str, config: str, overrides: tuple[str, ...]) -> None:
    """Runs ENTRY with the keys of CONFIG, a YAML file or the name of a packaged one.

    OVERRIDES such as seed=1 or sizes.train=64 change the config. The same command continues
    a run that was stopped. For several processes use accelerate launch -m tts_verifier.training
    with the same arguments.

    Entries: cold-start-1, cold-start-2, flow, grpo, init-from-qwen, miniature-richhf.

    \b
    Example:
        tts-train miniature-richhf miniature-richhf output=runs/richhf
        tts-train miniature-richhf my.yaml "sizes={train: 64, test: 16}" sample_share=0
        tts-train cold-start-2 both-modes output=runs/both minutes=9
    """
    say_loading("the config and its parts")
    from tts_verifier.training.entries import run_entry

    quiet_libraries()
    run_entry(entry, config, overrides)
