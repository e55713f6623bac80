"""A verifier is found by its name in recipes, or as a checkpoint, and takes options."""

from __future__ import annotations

from typing import Any

import pytest

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.registry import built
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.load import load_verifier


def test_names_of_recipes_and_of_checkpoints_are_known() -> None:
    assert load_verifier("shapes-judge").settings["verifier"] == "shapes-judge"
    with pytest.raises(CheckpointError, match="imagedoctor"):
        load_verifier("imagedoctor")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fake", {"steps": 1}, "'fake' has no argument 'steps'. Did you mean 'scores'"),
        ("fake", {"model": "folder"}, "'fake' has no argument 'model'"),
        ("fake:folder", {}, "'fake' has no argument 'model'"),
        ("shapes-judge", {"steps": 1}, "'shapes-judge' has no argument 'steps'"),
        ("remote", {}, "'remote' needs url, which is not given"),
    ],
)
def test_arguments_that_a_verifier_does_not_take_or_lacks_are_named(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_verifier(name, options=options)
    if ":" not in name:
        with pytest.raises(InputError, match=message):
            built("verifier", {"name": name, **options})


def test_the_checkpoint_may_be_an_option_and_the_device_another() -> None:
    options = {"model": "shapes", "batch_size": 2}
    verifier = load_verifier("imagedoctor", options=options, device="cpu")
    assert isinstance(verifier, ImageDoctor)
    assert verifier.batch_size == 2
    assert options == {"model": "shapes", "batch_size": 2}
    with pytest.raises(InputError, match="device must be a device of this machine"):
        load_verifier("imagedoctor", options=options, device="abacus")
    with pytest.raises(InputError, match="device must be a device of this machine"):
        load_verifier("imagedoctor", options=options | {"device": "abacus"}, device="cpu")
