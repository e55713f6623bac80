"""Run folders from somebody else: nothing outside is touched, and what does not fit is noticed."""

import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hostile_folders import DAMAGES, STRATEGIES, Damage, Site, forge, forge_tables, try_everything
from hypothesis import given, settings
from hypothesis import strategies as st

from tts_verifier.errors import RunError
from tts_verifier.log import read_outlines, read_trials


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@settings(max_examples=3)
@given(kind=st.sampled_from(sorted(STRATEGIES)), seed=st.integers(0, 2**32))
def test_a_harmed_folder_is_refused_or_mended_and_nothing_outside_changes(
    damage: Damage, kind: str, seed: int
) -> None:
    with TemporaryDirectory() as root:
        site = Site.copy(kind, Path(root))
        damage(site, random.Random(seed))
        try_everything(site)


@pytest.mark.parametrize(
    "spans",
    [
        # Added up in 64 bits, these are the eight rows of the table.
        f"[[{2**62}, {2**62}, {2**62}, {2**62 + 8}], [1, 1, 1, 1]]",
        f"[[{10**20}], [1]]",
        f"[[8], [{2**63}]]",
        "[[1.5], [1]]",
        "[[null], [1]]",
        "{}",
    ],
)
def test_metadata_that_do_not_fit_their_table_are_damage(tmp_path: Path, spans: str) -> None:
    site = Site.copy("finished", tmp_path)
    forge_tables(site.run, lambda table: table, {b"tts_files_written": spans.encode()})
    with pytest.raises(RunError, match=r"trials\.parquet is damaged"):
        read_trials(site.run)
    try_everything(site)


@pytest.mark.parametrize("name", ["error", "prompt_id", "proposal"])
def test_a_score_that_is_called_like_a_column_is_damage(tmp_path: Path, name: str) -> None:
    def score(table: pa.Table) -> pa.Table:
        field = pa.field(name, pa.float64(), metadata={"role": "score", "name": name})
        place = table.schema.get_field_index(name)
        return table.set_column(place, field, pa.array([0.5] * len(table)))

    site = Site.copy("finished", tmp_path)
    forge_tables(site.run, score)
    with pytest.raises(RunError, match=f"it calls {name} a score"):
        read_trials(site.run)


def test_an_infinite_objective_counts_for_nothing_however_it_is_read(tmp_path: Path) -> None:
    def edit(row: dict[str, Any]) -> None:
        row["objective"] = math.inf

    site = Site.copy("finished", tmp_path)
    forge(site.run, edit)
    for trials in (read_trials(site.run), read_outlines(site.run)):
        assert all(math.isnan(trial.objective) for trial in trials)
