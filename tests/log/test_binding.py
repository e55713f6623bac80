"""Every file is bound to its run: what is another's or was changed is noticed, set aside, made."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from killing import DyingGenerator, Killed, images_generated
from searches import InpaintReroll

from tts_verifier import run
from tts_verifier.errors import InputError, RunError, RunWarning
from tts_verifier.log import RunLog, open_log, read_header, read_picks, read_trials
from tts_verifier.log.storage import tables
from tts_verifier.log.storage.binding import Binding
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import (
    Draw,
    Heatmap,
    Heatmaps,
    InFile,
    InMemory,
    Job,
    Prompt,
    Sample,
    Trial,
    Verdict,
)
from tts_verifier.types.paths import path_inside, read_inside

PROMPTS = ["a red circle", "a blue star"]


def search(folder: Path, generator: FakeGenerator | None = None, seed: int = 0) -> pd.DataFrame:
    generator = generator or FakeGenerator(batch_size=4)
    run(PROMPTS, generator, FakeVerifier(), InpaintReroll(), folder=folder, seed=seed)
    table = pd.read_parquet(folder / "trials.parquet").sort_values("trial_id")
    return table.drop(columns=["generate_seconds", "verify_seconds"]).reset_index(drop=True)


def killed(folder: Path, seed: int = 0) -> None:
    with pytest.raises(Killed):
        search(folder, DyingGenerator(2), seed)


# -- tables of other runs ----------------------------------------------------------------------


def test_a_part_of_another_run_is_refused_by_readers_and_set_aside_by_the_run(
    tmp_path: Path,
) -> None:
    whole = search(tmp_path / "whole")
    killed(tmp_path / "run")
    killed(tmp_path / "other", seed=1)
    part = next((tmp_path / "other" / "parts").iterdir())
    foreign = shutil.copy2(part, tmp_path / "run" / "parts" / f"00000009.{part.name[9:]}")
    with pytest.raises(RunError, match=rf"{foreign.name} is damaged \(it is a table of another"):
        read_trials(tmp_path / "run")
    with pytest.warns(RunWarning, match=r"cannot be used \(it is a table of another run\)"):
        pd.testing.assert_frame_equal(search(tmp_path / "run"), whole)
    assert (tmp_path / "run" / "aside" / f"{foreign.name}.0").exists()


@pytest.mark.parametrize("with_digest", [True, False])
def test_the_table_of_another_run_is_not_taken_for_this_ones(
    tmp_path: Path, with_digest: bool
) -> None:
    whole = search(tmp_path / "run")
    search(tmp_path / "other", seed=1)
    for name in ["trials.parquet"] + ["trials.sha256"] * with_digest:
        shutil.copy2(tmp_path / "other" / name, tmp_path / "run" / name)
    with pytest.raises(RunError, match=r"trials\.parquet is damaged"):
        read_picks(tmp_path / "run", [])
    with pytest.warns(RunWarning, match=r"trials\.parquet cannot be used"):
        pd.testing.assert_frame_equal(search(tmp_path / "run"), whole)


@pytest.mark.parametrize("content", [None, "", "0\n", "x", "folder", "fifo", "link"])
def test_a_digest_file_that_is_gone_is_not_needed_and_comes_back(
    tmp_path: Path, content: str | None
) -> None:
    whole = search(tmp_path)
    path = tmp_path / "trials.sha256"
    good = path.read_text()
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    elif content == "link":
        path.symlink_to("header.json")
    elif content is not None:
        path.write_text(content)
    table = tmp_path / "trials.parquet"
    bad = bytearray(table.read_bytes())
    bad[len(bad) // 2] ^= 1
    shutil.copy2(table, tmp_path / "copy")
    table.write_bytes(bad)
    with pytest.raises(RunError, match="its SHA-256 is not the one noted"):
        read_trials(tmp_path)
    shutil.copy2(tmp_path / "copy", table)
    pd.testing.assert_frame_equal(search(tmp_path), whole)
    assert path.read_text() == good


def test_a_table_that_the_header_does_not_name_is_another_runs(tmp_path: Path) -> None:
    search(tmp_path)
    header = json.loads((tmp_path / "header.json").read_bytes())
    (tmp_path / "header.json").write_text(json.dumps({**header, "table": []}))
    with pytest.raises(RunError, match="no SHA-256 is noted for it"):
        read_trials(tmp_path)


def test_a_table_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tmp_path)
    for name in ("header.json", "trials.parquet"):
        shutil.copy2(tmp_path / name, tmp_path / f"old.{name}")
    shutil.rmtree(tmp_path / "images")
    with pytest.warns(RunWarning):
        search(tmp_path)
    for name in ("header.json", "trials.parquet"):
        (tmp_path / name).rename(tmp_path / f"new.{name}")
        (tmp_path / f"old.{name}").rename(tmp_path / name)
    checked, opened = tables._open_table, []

    def replace_first(path: Path, *arguments: object) -> tables.TableFile:
        if not opened:
            for name in ("header.json", "trials.parquet"):
                (tmp_path / f"new.{name}").replace(tmp_path / name)
        opened.append(path)
        return checked(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tables, "_open_table", replace_first)
    assert len(read_trials(tmp_path)) == 12
    assert len(opened) == 2


@pytest.mark.parametrize("target", ["nothing", "../decoy"])
def test_a_link_named_as_a_part_is_named_and_not_waited_for(tmp_path: Path, target: str) -> None:
    killed(tmp_path)
    (tmp_path / "decoy").write_text("mine")
    (tmp_path / "parts" / "00000099.0.0123456789abcdef.parquet").symlink_to(target)
    with pytest.raises(RunError, match=r"00000099.*is damaged \(it is no plain file\)"):
        read_trials(tmp_path)
    with pytest.warns(RunWarning, match="it is no plain file"):
        search(tmp_path)
    assert (tmp_path / "decoy").read_text() == "mine"


def test_a_part_that_is_listed_and_never_there_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    gone = tables.TablePart(tmp_path / "parts" / "gone.parquet", 0, digest="0123456789abcdef")
    monkeypatch.setattr(tables, "parts_of", lambda folder: [gone])
    with pytest.raises(RunError, match=r"gone\.parquet is damaged \(No such file"):
        read_trials(tmp_path)


# -- files that were changed -----------------------------------------------------------------


@pytest.mark.parametrize("where", ["images", "heatmaps"])
@pytest.mark.parametrize("change", ["torn", "flipped", "swapped", "emptied"])
def test_a_changed_file_is_noticed_whatever_its_time_says(
    tmp_path: Path, where: str, change: str
) -> None:
    whole = search(tmp_path)
    one, other = sorted((tmp_path / where).iterdir())[:2]
    about, good = one.stat(), one.read_bytes()
    content = good
    if change == "swapped":
        content = other.read_bytes()
        other.write_bytes(one.read_bytes())
        os.utime(other, ns=(0, 0))
    changed = bytearray(content)
    changed[-20] ^= change == "flipped"
    one.write_bytes({"torn": content[:-9], "emptied": b""}.get(change, changed))
    os.utime(one, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.warns(RunWarning, match="was changed since the log was written"):
        pd.testing.assert_frame_equal(search(tmp_path), whole)
    assert one.read_bytes() == good


def test_files_are_read_again_only_where_their_times_raise_doubts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tmp_path)
    read: list[str] = []
    # The times of a small run are too close together: its files would all be read.
    monkeypatch.setattr("tts_verifier.log.resume.TICK", 0)
    monkeypatch.setattr(
        "tts_verifier.log.resume.read_inside",
        lambda folder, path: read.append(path) or read_inside(folder, path),
    )
    search(tmp_path)
    assert read == []
    touched = sorted((tmp_path / "images").iterdir())[0]
    touched.chmod(0o600)
    search(tmp_path)
    assert set(read) == {f"images/{touched.name}"}


def test_a_part_says_when_its_files_were_written_also_after_merges(tmp_path: Path) -> None:
    killed(tmp_path)
    before = [tables.open_table(p.path, (p.digest,), _binding(tmp_path)) for p in _parts(tmp_path)]
    search(tmp_path)
    binding = _binding(tmp_path)
    table = tables.open_table(tmp_path / "trials.parquet", binding.table, binding)
    assert set(table.written) >= {time for part in before for time in part.written}
    newest = max(p.stat().st_ctime_ns for p in (tmp_path / "images").iterdir())
    assert newest <= max(table.written) <= (tmp_path / "trials.parquet").stat().st_ctime_ns


def _parts(folder: Path) -> list[tables.TablePart]:
    return tables.parts_of(folder)


def _binding(folder: Path) -> Binding:
    header = read_header(folder)
    return Binding(header["run"], tuple(header["table"]))


# -- rows that lead elsewhere --------------------------------------------------------------------


def test_a_state_path_that_leads_elsewhere_deletes_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "mine.npz"
    mine.write_text("mine")
    with open_log(tmp_path / "run", {}, {}) as log:
        for path in ("../mine.npz", str(mine), "header.json", "states/../../mine.npz"):
            state = InFile(tmp_path / "run", path, "0" * 64, None)  # type: ignore[arg-type]
            log.forget_states([Trial("t", Prompt("p", "p"), 0, Draw(1), 0.5, state=state)])
    assert mine.read_text() == "mine"
    assert (tmp_path / "run" / "header.json").exists()


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a/../x", "", ".", "a//b", "a/", "a\0b", "a\\b", "\ud800", "a\x1b[31m"]
)
def test_a_path_that_leads_out_or_nowhere_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(RunError, match="may name only files inside it"):
        path_inside(tmp_path, path)


def test_links_fifos_and_giants_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("12345")
    (tmp_path / "to_folder").symlink_to("folder")
    (tmp_path / "folder" / "to_file").symlink_to("../file")
    os.mkfifo(tmp_path / "fifo")
    for path in ("to_folder/x", "folder/to_file"):
        with pytest.raises(RunError, match="must hold files, not links"):
            read_inside(tmp_path, path)
    with pytest.raises(RunError, match="this is a named pipe"):
        read_inside(tmp_path, "fifo")
    with pytest.raises(RunError, match="a regular file is needed, this is a folder"):
        read_inside(tmp_path, "folder")
    with pytest.raises(RunError, match="at most 4 bytes, and has 5"):
        read_inside(tmp_path, "file", most=4)


@pytest.mark.parametrize("name", ["parts", "images", "drafts", "aside", "states", "waiting"])
def test_a_linked_folder_is_refused_before_anything_is_generated(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.npz").write_text("mine")
    killed(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    generator = FakeGenerator()
    with pytest.raises(RunError, match=rf"must hold files, not links; .*{name} is a link"):
        search(tmp_path / "run", generator)
    assert images_generated(generator) == 0
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["x.npz"]
    assert not (tmp_path / "run" / "lock").exists()


def test_names_of_heatmaps_never_become_paths(tmp_path: Path) -> None:
    names = ["../../x", "a/b", "..", "A", "a", "nul", "x" * 300, "一" * 90, "misalignment"]
    grid = Heatmap(np.zeros((2, 2), np.float32), (4, 4))
    verdict = Verdict({}, Heatmaps(dict.fromkeys(names, grid)))
    with open_log(tmp_path / "run", {}, {}) as log:
        log.append([Trial("t", Prompt("p", "p"), 0, Draw(1), 1.0, verdict, size=(4, 4))])
        (back,) = read_trials(tmp_path / "run")
    assert back.verdict is not None
    assert list(back.verdict.heatmaps) == names
    assert all(back.verdict.heatmaps[name].shape == (4, 4) for name in names)
    files = {p.name for p in (tmp_path / "run" / "heatmaps").iterdir()}
    assert len(files) == len(names)
    assert "t.misalignment.png" in files
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# -- headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"schema_version": 3, "about": ' + '{"a":' * 70 + "1" + "}" * 71,
        '{"schema_version": true, "about": {}}',
        '{"schema_version": 3, "about": {}}',
        '{"schema_version": 3, "about": {}, "run": "../x", "table": []}',
        '{"schema_version": 2, "about": []}',
        '{"schema_version": 2, "about": {}, "sessions": [1]}',
        '{"schema_version": 2, "about": {"x": "\\ud800"}}',
        # Half a character as bytes, which are no UTF-8.
        '{"schema_version": 2, "about": {"x": "\ud800"}}',
        '{"schema_version": ' + "1" * 5000 + ', "about": {}}',
    ],
)
def test_an_odd_header_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "header.json").write_text(content, errors="surrogatepass")
    with pytest.raises(RunError, match=r"header\.json must be a run's header") as caught:
        read_header(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling", "link"])
@pytest.mark.parametrize("name", ["header.json", "lock"])
def test_something_else_in_the_place_of_a_file_is_named(
    tmp_path: Path, name: str, kind: str
) -> None:
    path, mine = tmp_path / "run" / name, tmp_path / "mine"
    path.parent.mkdir()
    mine.write_text("{}")
    {
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "dangling": lambda: path.symlink_to("nothing"),
        "link": lambda: path.symlink_to(mine),
    }[kind]()
    with pytest.raises(RunError, match=rf"{name} (must be|is a link|cannot be)"):
        search(tmp_path / "run")
    assert mine.read_text() == "{}"
    assert not (tmp_path / "run" / "nothing").exists()


def test_a_lock_that_is_also_another_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    os.link(tmp_path / "mine", tmp_path / "run" / "lock")
    with pytest.raises(RunError, match="lock must be a file of its own"):
        search(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "mine"


# -- what a process that ends badly leaves ---------------------------------------------------------


def sample(name: str) -> Sample:
    image = InMemory(FakeGenerator().generate([Job(Prompt("p", "p"), Draw(1))])[0].image).value
    return Sample(Job(Prompt("p", "p"), Draw(1), id=name), image)


def test_a_note_does_not_overwrite_an_earlier_one_of_its_name(tmp_path: Path) -> None:
    with open_log(tmp_path, {}, {}) as log:
        log.start_images([sample("a"), sample("b")], note=True)
    with open_log(tmp_path, {}, {}) as log:
        log.start_images([sample("a")], note=True)
        log.flush()
        jobs = [Job(Prompt("p", "p"), Draw(1), id=name) for name in "ab"]
        log.append([Trial("a", Prompt("p", "p"), 0, Draw(1), 1.0)])
    with open_log(tmp_path, {}, {}) as log:
        assert set(log.unverified(jobs)) == {"a", "b"}


def test_the_rows_of_a_batch_are_written_before_ctrl_c_takes_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import Future

    result, presses = Future.result, iter([KeyboardInterrupt])

    def interrupted(self: Future, timeout: float | None = None) -> object:
        # Ctrl-C comes while the main thread waits.
        if type(error := next(presses, None)) is type:
            raise error
        return result(self, timeout)

    with open_log(tmp_path, {}, {}) as log:
        monkeypatch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.append([Trial("t", Prompt("p", "p"), 0, Draw(1), 1.0, objective=0.5)])
        assert [trial.id for trial in read_trials(tmp_path)] == ["t"]


def test_an_error_while_the_log_closes_does_not_hide_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(RunLog, "flush", refuse)
    with pytest.raises(InputError, match="first") as caught, open_log(tmp_path, {}, {}):
        raise InputError("first")
    assert caught.value.__notes__ == ["The log could not be closed either: the disk is full"]
    with pytest.raises(RunError, match="the disk is full"), open_log(tmp_path, {}, {}):
        pass
    assert not (tmp_path / "lock").exists()


def test_a_finished_table_that_cannot_be_moved_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = os.replace

    def refuse(source: object, goal: object) -> None:
        if Path(str(source)).name == "trials.new":
            raise OSError(28, "No space left on device")
        move(source, goal)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(RunError, match=r"trials\.parquet cannot be written: No space left"):
            search(tmp_path)
    search(tmp_path)
    assert pq.read_metadata(tmp_path / "trials.parquet").num_rows == 12
