"""Folders of Parquet parts: continued after kills, moves and damage, at a cost that is stated."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tts_verifier.cli.score import score_command
from tts_verifier.errors import InputError, RunError, RunWarning
from tts_verifier.scoring import Pair, Parts, score_into_parts, score_pairs_into
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict
from tts_verifier.verifiers.ensemble import Ensemble


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """A hundred pictures of different reds."""
    (tmp_path / "in").mkdir()
    for i in range(100):
        Image.new("RGB", (2, 2), (2 * i, 0, 0)).save(tmp_path / "in" / f"{i:03d}.png")
    return [Pair(str(tmp_path / "in" / f"{i:03d}.png"), "x") for i in range(100)]


class Acting(FakeVerifier):
    """Does something before its call of that number, counted from 0."""

    def __init__(self, call: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.call, self.act = call, act

    def verify(self, *arguments: Any, **options: Any) -> list[Verdict]:
        if len(self.trace) == self.call:
            self.act()
        return super().verify(*arguments, **options)


def interrupt() -> None:
    raise KeyboardInterrupt


def judged(verifier: FakeVerifier) -> int:
    return sum(int(call[1:]) for call in verifier.trace)


def score(folder: Path, pairs: list[Pair]) -> tuple[int, list[dict[str, Any]]]:
    """Returns how many pictures were judged, and the rows."""
    verifier = FakeVerifier()
    return judged(verifier), list(score_into_parts(folder, verifier, pairs).rows())


def continued(folder: Path, pairs: list[Pair]) -> tuple[int, Parts]:
    verifier = FakeVerifier()
    parts = score_into_parts(folder, verifier, pairs)
    return judged(verifier), parts


def test_a_folder_is_read_by_everything_that_reads_parquet(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    broken = Pair(str(tmp_path / "gone.png"), "x")
    parts = score_into_parts(tmp_path / "out", FakeVerifier(), [broken, *pairs])
    table = pd.read_parquet(tmp_path / "out")
    assert list(table.columns[:3]) == ["image", "prompt", "objective"]
    assert list(table.image) == [broken.image, *(pair.image for pair in pairs)]
    assert table.error.notna().tolist() == [True, *[False] * 100]
    rows = list(parts.rows(whole=True))
    assert "There is no image file" in rows[0]["error"]
    assert (rows[100]["overall"], rows[100]["boxes"]) == (table.overall[100], [[0, 0, 1, 2]])
    assert sorted(p.name[0] for p in (tmp_path / "out").iterdir()) == ["0"]
    assert not (tmp_path / "out.lock").exists()


def test_a_kill_costs_one_batch(tmp_path: Path, pairs: list[Pair]) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    # What a kill in the third batch of 32 leaves on the disk.
    score_into_parts(out, Acting(2, lambda: shutil.copytree(out, kept)), pairs)
    count, parts = continued(kept, pairs)
    assert count == 100 - 64
    assert [row["image"] for row in parts.rows()] == [pair.image for pair in pairs]
    assert continued(kept, pairs)[0] == 0


def test_a_line_that_was_cut_short_is_scored_again(tmp_path: Path, pairs: list[Pair]) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    score_into_parts(out, Acting(1, lambda: shutil.copytree(out, kept)), pairs[:64])
    (lines,) = kept.glob(".*.jsonl")
    lines.write_bytes(lines.read_bytes()[:-30])
    assert continued(kept, pairs[:64])[0] == 33


def test_ctrl_c_leaves_a_folder_that_is_complete(tmp_path: Path, pairs: list[Pair]) -> None:
    with pytest.raises(KeyboardInterrupt):
        score_into_parts(tmp_path / "out", Acting(2, interrupt), pairs)
    assert len(pd.read_parquet(tmp_path / "out")) == 64
    assert continued(tmp_path / "out", pairs)[0] == 36


def test_a_kill_between_a_part_and_its_lines_doubles_nothing(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    out = tmp_path / "out"
    score_into_parts(out, FakeVerifier(), pairs)
    row = pq.read_table(next(out.glob("*.parquet"))).to_pylist()[0]
    (out / ".00000000.jsonl").write_text(json.dumps(row) + "\n")
    count, parts = continued(out, pairs)
    assert (count, len(list(parts.rows()))) == (0, 100)
    assert not list(out.glob(".*.jsonl"))


def test_what_was_touched_or_moved_or_copied_is_not_judged_again(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    out = tmp_path / "out"
    score_into_parts(out, FakeVerifier(), pairs)
    Path(pairs[0].image).touch()
    Path(pairs[1].image).rename(tmp_path / "in" / "moved.png")
    shutil.copy(pairs[2].image, tmp_path / "in" / "copy.png")
    asked = [*pairs[:1], *(Pair(str(tmp_path / f"in/{n}.png"), "x") for n in ("moved", "copy"))]
    count, parts = continued(out, asked)
    rows = list(parts.rows())
    assert (count, [Path(row["image"]).stem for row in rows]) == (0, ["000", "moved", "copy"])
    assert [row["objective"] for row in rows] == pytest.approx(
        [FakeVerifier.objective({"semantic_alignment": 2 * i / 255, "aesthetics": 0.0,
                                 "plausibility": 0.0}) for i in range(3)]
    )  # fmt: skip


def test_what_changed_is_scored_again_and_the_later_row_counts(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    out = tmp_path / "out"
    score_into_parts(out, FakeVerifier(), pairs)
    Image.new("RGB", (2, 2), "white").save(pairs[7].image)
    count, parts = continued(out, pairs)
    assert count == 1
    assert len(list(parts.rows())) == 100
    table = pd.read_parquet(out).drop_duplicates("image", keep="last").set_index("image")
    assert table.overall[pairs[7].image] == 1.0
    assert continued(out, [Pair(pairs[7].image, "another prompt")])[0] == 1


def test_copies_in_one_call_are_judged_once(tmp_path: Path) -> None:
    pairs = [Pair(str(tmp_path / f"{i}.png"), "x") for i in range(40)]
    for pair in pairs:
        Image.new("RGB", (2, 2), "red").save(pair.image)
    count, parts = continued(tmp_path / "out", [*pairs, *pairs])
    assert count == 1
    assert [row["image"] for row in parts.rows()] == [pair.image for pair in pairs]


def test_many_rows_make_several_parts_of_one_type(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tts_verifier.scoring.parts.PART_ROWS", 30)
    # The first part has no score at all.
    gone = [Pair(str(tmp_path / f"gone{i}.png"), "x") for i in range(4096)]
    score_into_parts(tmp_path / "out", FakeVerifier(), [*gone, *pairs])
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name[:9] for path in files] == [f"{i:08d}-" for i in range(len(files))]
    assert len({str(pq.read_schema(path)) for path in files}) == 1
    assert len(pd.read_parquet(tmp_path / "out")) == 4196
    count, parts = continued(tmp_path / "out", pairs)
    assert (count, len(list(parts.rows()))) == (0, 100)


def test_a_part_that_was_changed_is_set_aside(tmp_path: Path, pairs: list[Pair]) -> None:
    out = tmp_path / "out"
    score_into_parts(out, FakeVerifier(), pairs[:50])
    (path,) = out.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(RunWarning, match=r"was changed since .* its pictures are scored again"):
        count, _ = continued(out, pairs[:50])
    assert count == 50
    assert len(pd.read_parquet(out)) == 50


def test_a_folder_with_something_else_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    with pytest.raises(RunError, match=r"has '000\.png'\. Give another --output"):
        score_into_parts(tmp_path / "in", FakeVerifier(), pairs)
    with pytest.raises(RunError, match="out cannot be written: No such file"):
        score_into_parts(tmp_path / "no" / "out", FakeVerifier(), pairs)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file cannot be written: File exists"):
        score_into_parts(tmp_path / "file", FakeVerifier(), pairs)


@pytest.mark.parametrize(
    "rows",
    [
        {"x": [1]},
        {"key": ["zz"], "stamp": [1], "error": ["x"]},
        {"key": ["0" * 16], "stamp": [-1], "error": [""]},
    ],
)
def test_a_part_or_lines_of_others_are_refused(tmp_path: Path, rows: dict[str, Any]) -> None:
    (tmp_path / "out").mkdir()
    content = io.BytesIO()
    pq.write_table(pa.table(rows), content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()[:16]
    part = tmp_path / "out" / f"00000000-{digest}.parquet"
    part.write_bytes(content.getvalue())
    with pytest.raises(RunError, match=rf"and nothing else, .* has '{part.name}'\. Give another"):
        score_into_parts(tmp_path / "out", FakeVerifier(), [])
    part.unlink()
    line = {"image": "a.png", "objective": 1, "key": "zz", **{k: v[0] for k, v in rows.items()}}
    (tmp_path / "out/.00000000.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RunError, match=r"and nothing else, .* has '.00000000.jsonl'"):
        score_into_parts(tmp_path / "out", FakeVerifier(), [])


def test_of_two_calls_at_once_the_second_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    out, refused = tmp_path / "out", []

    def second() -> None:
        with pytest.raises(RunError, match=r"Scores cannot be written to .* is in use: process"):
            score_into_parts(out, FakeVerifier(), pairs)
        refused.append(True)

    score_into_parts(out, Acting(1, second), pairs)
    assert refused == [True]


def test_pictures_are_taken_one_after_the_other(tmp_path: Path, pairs: list[Pair]) -> None:
    taken: list[int] = []

    def endless() -> Any:
        for i, pair in enumerate(pairs):
            taken.append(i)
            yield pair

    def check() -> None:
        # One batch is verified, one is read, and each thread has a picture; no list of all.
        assert len(taken) < 100
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_into_parts(tmp_path / "out", Acting(0, check), endless())


@pytest.mark.parametrize(
    ("device", "own", "expected"), [("cuda:0", None, 80), (None, 40, 40), ("cpu", 8, 32)]
)
def test_a_verifier_gets_as_many_pictures_as_its_devices_work_on(
    tmp_path: Path, pairs: list[Pair], device: str | None, own: int | None, expected: int
) -> None:
    verifier: Any = FakeVerifier()
    verifier.device, verifier.batch_size = device, own
    score_into_parts(tmp_path / "out", verifier, pairs[:80])
    assert verifier.trace[0] == f"v{expected}"
    verifier.trace.clear()
    both = Ensemble({"quick": FakeVerifier(), "deep": verifier})
    score_into_parts(tmp_path / "both", both, pairs[:80])
    assert verifier.trace[0] == f"v{expected}"


def test_large_pictures_make_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tts_verifier.scoring.batches._PIXELS", 200)
    pairs = []
    for i, side in enumerate((10, 10, 10, 30, 10)):
        pairs.append(Pair(str(tmp_path / f"{i}.png"), "x"))
        Image.new("RGB", (side, side), (i, 0, 0)).save(pairs[-1].image)
    verifier = FakeVerifier()
    score_into_parts(tmp_path / "out", verifier, pairs)
    assert verifier.trace == ["v2", "v1", "v1", "v1"]


def test_a_picture_that_is_refused_costs_few_calls(tmp_path: Path, pairs: list[Pair]) -> None:
    class Picky(FakeVerifier):
        def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
            self.trace.append("call")
            if any(image.getpixel((0, 0)) == (10, 0, 0) for image in images):
                raise InputError("This red is refused.")
            return FakeVerifier().verify(images, prompts, **options)

    verifier = Picky()
    rows = list(score_into_parts(tmp_path / "out", verifier, pairs[:32]).rows())
    assert [row["error"] for row in rows if "error" in row] == ["This red is refused."]
    assert len(verifier.trace) == 11


def test_a_batch_that_memory_does_not_hold_is_halved(tmp_path: Path, pairs: list[Pair]) -> None:
    class Small(FakeVerifier):
        most = 10

        def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
            if len(images) > self.most:
                raise RuntimeError("The GPU is out of memory.")
            return super().verify(images, prompts, **options)

    verifier = Small()
    rows = list(score_into_parts(tmp_path / "out", verifier, pairs[:32]).rows())
    assert len(rows) == 32
    assert not any("error" in row for row in rows)
    assert verifier.trace == ["v8"] * 4
    verifier.most = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        score_into_parts(tmp_path / "none", verifier, pairs[:32])


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_what_failed_is_tried_again_and_has_one_row(
    tmp_path: Path, pairs: list[Pair], name: str
) -> None:
    class Failing(FakeVerifier):
        fails = True

        def verify(self, *arguments: Any, **options: Any) -> list[Verdict]:
            if self.fails:
                raise InputError("Nobody answers.")
            return super().verify(*arguments, **options)

    def rows() -> list[dict[str, Any]]:
        if name == "out":
            return list(score_into_parts(tmp_path / name, verifier, asked).rows())
        return score_pairs_into(tmp_path / name, verifier, asked)

    def written() -> int:
        path = tmp_path / name
        return len(pd.read_json(path, lines=True) if path.is_file() else pd.read_parquet(path))

    gone = Pair(str(tmp_path / "gone.png"), "x")
    asked, verifier = [pairs[0], gone], Failing()
    for _ in range(2):
        assert [row["error"][:7] for row in rows()] == ["Nobody ", "There i"]
        assert written() == 2
    verifier.fails = False
    for _ in range(2):
        scores = {Path(row["image"]).stem: row.get("overall") for row in rows()}
        assert scores == {"000": 0, "gone": None}
        assert (written(), verifier.trace) == (3, ["v1"])


# -- the command ---------------------------------------------------------------------------------


def command(*arguments: object) -> Result:
    return CliRunner().invoke(score_command, [*map(str, arguments), "--verifier", "fake"])


def test_the_command_prints_a_summary_and_the_best(tmp_path: Path, pairs: list[Pair]) -> None:
    arguments = (tmp_path / "in", "--prompt", "x", "--output", tmp_path / "out")
    done = command(*arguments)
    assert (done.exit_code, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert lines[0].split() == ["lowest", "10", "%", "half", "90", "%", "highest"]
    assert lines[1].split() == ["objective", "0.000", "0.062", "0.311", "0.559", "0.621"]
    assert lines[-1] == f"100 images, 0 failed: {tmp_path / 'out'}"
    done = command(*arguments, "--top", 2, "--format", "jsonl")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["image"]).stem for row in rows] == ["099", "098"]
    assert rows[0]["reply"].startswith("semantic_alignment=0.776")
    table = command(*arguments, "--top", 1, "--max", "objective=0.1").stdout.splitlines()
    assert table[1].split()[0].endswith("015.png")


def test_the_command_says_that_nothing_could_be_scored(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    done = command(tmp_path / "a.png", "--prompt", "x", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "None of 1 images could be scored. The first: An image file must be" in done.stderr
