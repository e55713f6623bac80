"""A verifier is found by its name in recipes, or as a checkpoint, and takes options."""

from __future__ import annotations

from typing import Any

import pytest

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.load import load_verifier, verifier_of_table


def test_names_of_recipes_and_of_checkpoints_are_known() -> None:
    assert load_verifier("shapes-judge").settings["verifier"] == "shapes-judge"
    with pytest.raises(CheckpointError, match="imagedoctor"):
        load_verifier("imagedoctor")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fake", {"steps": 1}, "'fake' cannot be built: .*'steps'. Its arguments are scores, unpa"),
        ("fake", {"model": "folder"}, "'fake' cannot be built: .*'model'"),
        ("fake:folder", {}, "'fake' cannot be built: .*'model'"),
        ("shapes-judge", {"steps": 1}, "'shapes-judge' cannot be built: .* Its arguments are none"),
        ("remote", {}, "'remote' cannot be built: .*'url'. Its arguments are url, timeout"),
    ],
)
def test_arguments_that_a_verifier_does_not_take_or_lacks_are_named(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_verifier(name, options=options)
    if ":" not in name:
        with pytest.raises(InputError, match=message):
            verifier_of_table({"name": name, **options})


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
