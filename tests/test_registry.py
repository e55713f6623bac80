"""Names become builders, lazily; unknown names get help."""

from importlib.metadata import EntryPoint

import pytest

from tts_verifier import registry
from tts_verifier.errors import RecipeError
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeVerifier


def test_a_name_is_the_class_that_it_stands_for() -> None:
    assert registry.builder("strategy", "best_of_n") is BestOfN
    assert registry.builder("verifier", "fake") is FakeVerifier


def test_a_name_nearly_right_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError) as caught:
        registry.builder("strategy", "best-of-n")
    everything = ", ".join(sorted(registry.BUILT_IN["strategy"]))
    assert str(caught.value) == (
        f"Unknown strategy 'best-of-n'. Did you mean 'best_of_n'? Available: {everything}."
    )


def test_a_name_far_off_gets_the_list() -> None:
    with pytest.raises(RecipeError, match=r"'xyz'\. Available: diffusers, fake, simulated\.$"):
        registry.builder("generator", "xyz")


def test_an_installed_plugin_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = (
        EntryPoint("verifier.mine", "tts_verifier.testing:FakeVerifier.verify", registry.GROUP),
        EntryPoint("verifier.gone", "no_such_module:Thing", registry.GROUP),
        EntryPoint("verifier.fake", "no_such_module:Impostor", registry.GROUP),
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: plugins)
    assert registry.builder("verifier", "mine") is FakeVerifier.verify
    assert registry.builder("verifier", "fake") is FakeVerifier, "a plug-in replaces no built-in"
    assert "mine" not in registry.names("generator")
    with pytest.raises(RecipeError, match=r"'gone' is no_such_module:Thing, which fails"):
        registry.builder("verifier", "gone")
