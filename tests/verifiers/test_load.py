"""A verifier is found by its name in recipes, or as a checkpoint, and takes options."""

from __future__ import annotations

import pytest

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.load import load_verifier


def test_names_of_recipes_and_of_checkpoints_are_known() -> None:
    assert load_verifier("shapes-judge").settings["verifier"] == "shapes-judge"
    with pytest.raises(CheckpointError, match="imagedoctor"):
        load_verifier("imagedoctor")
    with pytest.raises(InputError, match="has no option steps; it has scores, unparsable"):
        load_verifier("fake", options={"steps": 1})


def test_the_checkpoint_may_be_an_option_and_the_device_another() -> None:
    options = {"model": "shapes", "batch_size": 2}
    verifier = load_verifier("imagedoctor", options=options, device="cpu")
    assert isinstance(verifier, ImageDoctor)
    assert verifier.batch_size == 2
    assert options == {"model": "shapes", "batch_size": 2}
