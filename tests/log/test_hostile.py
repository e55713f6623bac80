"""Run folders from somebody else: nothing outside is touched, and what does not fit is noticed."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hostile_folders import DAMAGES, STRATEGIES, Damage, Site, try_everything
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@settings(max_examples=6)
@given(kind=st.sampled_from(sorted(STRATEGIES)), seed=st.integers(0, 2**32))
def test_a_harmed_folder_is_refused_or_mended_and_nothing_outside_changes(
    damage: Damage, kind: str, seed: int
) -> None:
    with TemporaryDirectory() as root:
        site = Site.copy(kind, Path(root))
        damage(site, random.Random(seed))
        try_everything(site)
