"""Pictures judged by other processes give the same folder of parts."""

import io
import pickle
from collections.abc import Iterable, Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tts_verifier.errors import RunError
from tts_verifier.scoring import open_pairs, score_into_parts, score_with_workers
from tts_verifier.scoring.distributed import Chunk, JudgedChunk, score_chunk
from tts_verifier.testing import FakeVerifier
from tts_verifier.verifiers.load import load_verifier

loads: list[str] = []


def load_noted(name: str) -> FakeVerifier:
    loads.append(name)
    return FakeVerifier()


def over_there(chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, JudgedChunk]]:
    """Judges as a worker does: only what pickles gets there and back."""
    for chunk in chunks:
        yield chunk, pickle.loads(pickle.dumps(score_chunk(pickle.loads(pickle.dumps(chunk)))))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Files and bytes, one of them broken."""
    pictures = []
    for i in range(80):
        content = io.BytesIO()
        Image.new("RGB", (2, 2), (3 * i, 0, 0)).save(content, "PNG")
        (tmp_path / f"{i}.png").write_bytes(content.getvalue())
        bytes_ = None if i % 2 else content.getvalue()
        pictures.append({"bytes": bytes_, "path": f"{i}.png"})
    (tmp_path / "7.png").write_bytes(b"no")
    columns = {"image": pictures, "prompt": [f"red {i // 4}" for i in range(80)]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def frame(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder).sort_values(["image", "prompt"], ignore_index=True)


def test_workers_give_the_same_rows(tmp_path: Path, table: Path) -> None:
    # Read anew each time: a pair's picture is loaded before the next pair is taken.
    sources = [open_pairs([str(table)])] * 2
    score_into_parts(tmp_path / "one", FakeVerifier(), sources[0])
    loads.clear()
    parts = score_with_workers(tmp_path / "many", over_there, load_noted, "fake", sources[1])
    assert len(list(parts.rows())) == 80
    pd.testing.assert_frame_equal(frame(tmp_path / "one"), frame(tmp_path / "many"))
    assert loads == ["fake"]


def test_workers_with_different_verifiers_are_refused(tmp_path: Path, table: Path) -> None:
    def mixed(chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, JudgedChunk]]:
        for chunk, judged in over_there(chunks):
            other = {"model": "other"} if chunk.pairs else judged.settings
            yield chunk, replace(judged, settings=other)

    with pytest.raises(RunError, match=r"the same verifier, and they differ in model"):
        score_with_workers(tmp_path / "out", mixed, load_verifier, "fake", open_pairs([str(table)]))
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_one_process_continues_what_workers_began_and_the_reverse(
    tmp_path: Path, table: Path
) -> None:
    def stopped(chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, JudgedChunk]]:
        for number, done in enumerate(over_there(chunks)):
            if number == 2:
                raise KeyboardInterrupt
            yield done

    with pytest.raises(KeyboardInterrupt):
        score_with_workers(
            tmp_path / "out", stopped, load_verifier, "fake", open_pairs([str(table)])
        )
    assert len(frame(tmp_path / "out")) == 64
    verifier = FakeVerifier()
    score_into_parts(tmp_path / "out", verifier, open_pairs([str(table)]))
    assert verifier.trace == ["v16"]
    handed: list[int] = []

    def counted(chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, JudgedChunk]]:
        for chunk, judged in over_there(chunks):
            handed.append(len(chunk.pairs))
            yield chunk, judged

    score_with_workers(tmp_path / "out", counted, load_verifier, "fake", open_pairs([str(table)]))
    # What has an error is tried again.
    assert handed == [0, 1]


def load_ending(name: str) -> FakeVerifier:
    raise SystemExit(0)


def test_a_verifier_that_ends_its_process_is_an_error(tmp_path: Path, table: Path) -> None:
    source = open_pairs([str(table)])
    with pytest.raises(RunError, match=r"must not end its process, and mine did: SystemExit"):
        score_with_workers(tmp_path / "out", over_there, load_ending, "mine", source)
    pairs = list(source)[:3]
    chunk = Chunk("", load_ending, "mine", "score", ())
    assert str(chunk) == "loading the verifier mine"
    named = f"3 pictures, {table}:1 to {table}:3"
    assert str(replace(chunk, pairs=pairs)) == named
    assert str(replace(chunk, pairs=pairs, timeout=9)) == f"{named}, at most 9 s for a batch"


def test_relative_paths_mean_where_the_command_was_started(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, JudgedChunk]]:
        for chunk in chunks:
            with chdir("/"):
                yield from over_there([chunk])

    monkeypatch.chdir(tmp_path)
    source = open_pairs(["1.png", "2.png"], prompt="x")
    parts = score_with_workers(tmp_path / "out", elsewhere, load_noted, "fake", source)
    assert [row.get("error") for row in parts.rows()] == [None, None]
