from __future__ import annotations

from tts_verifier.training.miniature.verifier.checks import count_objects


def test_objects_count_when_they_are_named_and_placed() -> None:
    truth = "<think>\nObjects:#1 red star 80 80 40#2 blue ring 400 400 80"
    reply = "<think>\nObjects:#1 red star 80 96 40#2 blue star 400 400 80\nChecks: ring"
    assert count_objects(reply, truth) == (2, 1, 1)
    assert count_objects("nothing", truth) == (2, 0, 0)
