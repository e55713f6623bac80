"""What a part may say besides its interface: where it computes, and what may grow or is lacking."""

import pytest
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.interfaces import ExplainsLimits, Extendable, Placed, is_movable
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Repaint


class Large(FakeVerifier):
    """Has weights that take long to count."""

    device = "cuda:0"
    home = None

    @property
    def nbytes(self) -> int:
        raise AssertionError("to ask whether a part is movable must not count its weights")

    def to(self, device: str) -> None:
        self.device = device


def test_a_movable_part_is_known_without_counting_its_weights() -> None:
    assert is_movable(Large())
    assert isinstance(Large(), Placed)


def test_a_part_without_weights_is_neither_placed_nor_movable() -> None:
    for part in (FakeVerifier(), FakeGenerator(), None):
        assert not is_movable(part)
        assert not isinstance(part, Placed)


def test_a_strategy_may_say_what_grows_and_a_generator_what_it_lacks() -> None:
    class DrawsOnly(FakeGenerator):
        lacks = {Repaint: "it has no mask"}  # noqa: RUF012

    assert isinstance(BestOfN(2), Extendable)
    assert list(BestOfN(2).grows) == ["n"]
    assert isinstance(DrawsOnly(), ExplainsLimits)
    assert not isinstance(FakeGenerator(), ExplainsLimits)


@pytest.mark.parametrize("prompt", [None, 3, b"a cat", float("nan")])
def test_a_prompt_of_a_verifier_is_a_text(prompt: object) -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(InputError, match="Prompt 1 must be a text, got"):
        FakeVerifier().verify([image, image], ["a cat", prompt])  # type: ignore[list-item]


def test_a_prompt_of_a_verifier_has_no_half_of_a_letter() -> None:
    with pytest.raises(InputError, match=r"Prompt 0 must be valid Unicode, 'a \\ud800' has a lone"):
        FakeVerifier().verify([Image.new("RGB", (8, 8))], ["a \ud800"])
