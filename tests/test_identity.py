"""Seeds are derived by hashing and are the same on every machine."""

from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.identity import seed_for


def test_a_seed_never_changes() -> None:
    assert seed_for(0, "a red circle", 0) == 3939376576880497805
    assert seed_for(1, "一只猫", 3, "repaint") == 746260161187699147


def test_every_part_matters() -> None:
    seeds = {
        seed_for(run, prompt, index, purpose)
        for run in (0, 1)
        for prompt in ("a", "b")
        for index in (0, 1)
        for purpose in ("draw", "repaint")
    }
    assert len(seeds) == 16


@given(st.integers(), st.text(st.characters(codec="utf-8")), st.integers(0))
def test_a_seed_fits_every_generator_of_random_numbers(run: int, prompt: str, index: int) -> None:
    assert 0 <= seed_for(run, prompt, index) < 2**63
