"""Parquet files with pictures inside, and tar shards: read in place, a few rows at a time."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tts_verifier.cli.score import score_command
from tts_verifier.errors import InputError
from tts_verifier.scoring import open_pairs, score_into_parts
from tts_verifier.testing import FakeVerifier


def png(red: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (2, 2), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


def tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def score(*arguments: object) -> Result:
    return CliRunner().invoke(score_command, [*map(str, arguments), "--verifier", "fake"])


def rows(*arguments: object) -> list[dict[str, Any]]:
    done = score(*arguments, "--format", "jsonl")
    assert done.exit_code == 0, done.output
    lines = sorted(map(json.loads, done.stdout.splitlines()), key=lambda row: row["image"])
    return list(lines)


def judged_again(folder: Path, source: Path) -> int:
    verifier = FakeVerifier()
    parts = score_into_parts(folder, verifier, open_pairs([str(source)]))
    assert list(parts.rows())
    return sum(int(call[1:]) for call in verifier.trace)


# -- Parquet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_pictures_may_be_inside_a_table(tmp_path: Path, kind: str) -> None:
    pictures: list[Any] = [png(10 * i) for i in range(25)]
    if kind == "struct":
        pictures = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(pictures)]
    table = pa.table({"image": pictures, "caption": [f"red {i}" for i in range(25)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10)
    found = rows(tmp_path / "t.parquet")
    assert {row["image"]: row["prompt"] for row in found} == {
        f"{tmp_path}/t.parquet:{i + 1}": f"red {i}" for i in range(25)
    }
    reds = {row["prompt"]: row["semantic_alignment"] for row in found}
    assert reds["red 17"] == pytest.approx(170 / 255)
    assert judged_again(tmp_path / "out", tmp_path / "t.parquet") == 25
    assert judged_again(tmp_path / "out", tmp_path / "t.parquet") == 0


def test_a_table_of_pictures_may_lack_prompts_and_have_other_names(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [png(1)]}), tmp_path / "t.parquet")
    assert "has no column of images" in score(tmp_path / "t.parquet").stderr
    named = (tmp_path / "t.parquet", "--image-column", "jpg")
    assert "has no column of prompts" in score(*named).stderr
    assert rows(*named, "--prompt", "a")[0]["prompt"] == "a"
    pq.write_table(pa.table({"image": ["a"], "x": [b"a"]}), tmp_path / "t.parquet")
    done = score(tmp_path / "t.parquet", "--prompt-column", "x")
    assert "a column of prompts must be text, x is bytes" in done.stderr


def test_what_is_no_picture_in_a_table_is_a_row(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "here.png")
    pictures = [
        {"bytes": None, "path": "here.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": None},
        {"bytes": b"no", "path": None},
        {"bytes": png(1), "path": None},
        None,
    ]
    table = pa.table({"image": pictures, "prompt": ["a", "b", "c", "d", "", "f"]})
    pq.write_table(table, tmp_path / "t.parquet")
    errors = [row.get("error", "") for row in rows(tmp_path / "t.parquet")]
    assert errors[0] == ""
    assert "No such file" in errors[1]
    assert "t.parquet:3 cannot be read: there is no picture" in errors[2]
    assert "t.parquet:4 is not: its content is none of" in errors[3]
    assert "The prompt of" in errors[4]
    assert "there is no picture" in errors[5]


def test_a_large_table_of_paths_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["a.png"] * 5000, "prompt": "a"})
    table.to_parquet(tmp_path / "t.parquet")
    pairs = iter(open_pairs([str(tmp_path / "t.parquet")]))
    assert next(pairs).image == str(tmp_path / "a.png")
    assert sum(1 for _ in pairs) == 4999


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"no")
    assert "t.parquet must be a Parquet file" in score(tmp_path / "t.parquet").stderr
    assert "gone.parquet cannot be read: No such" in score(tmp_path / "gone.parquet").stderr
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "t.parquet")
    assert "has no row" in score(tmp_path / "t.parquet", "--prompt", "a").stderr


@pytest.mark.parametrize(
    "kind",
    [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()), None],
    ids=str,
)
def test_bytes_have_several_types(tmp_path: Path, kind: Any) -> None:
    content = [png(3), png(7)]
    pictures = pa.array(content, pa.binary(len(content[0]))) if kind is None else None
    pictures = pictures or pa.array(content).cast(kind)
    texts = pa.array(["a", "b"], pa.string_view())
    pq.write_table(pa.table({"image": pictures, "prompt": texts}), tmp_path / "t.parquet")
    assert [row["prompt"] for row in rows(tmp_path / "t.parquet")] == ["a", "b"]


def test_columns_of_other_types_are_named(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": "no bytes"}], "prompt": [["a"]], "path": ["a.png"]})
    pq.write_table(table, tmp_path / "t.parquet")
    error = score(tmp_path / "t.parquet").stderr
    assert "has no column of prompts" in error
    assert "nor pictures: image (struct<bytes: string>), prompt (list<element: string>)." in error


def test_a_damaged_place_of_a_table_costs_only_what_is_there(tmp_path: Path) -> None:
    table = pa.table({"image": [png(i) for i in range(24)], "prompt": [str(i) for i in range(24)]})
    options: Any = {"row_group_size": 16, "compression": "none", "use_dictionary": False}
    pq.write_table(table, tmp_path / "t.parquet", data_page_size=600, write_batch_size=4, **options)
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    # Before its bytes, each picture has its length.
    place = content.index(png(9))
    content[place - 4 : place] = b"\xff" * 4
    (tmp_path / "t.parquet").write_bytes(content)
    found = {row["prompt"]: row for row in rows(tmp_path / "t.parquet")}
    reds = {int(p): row["semantic_alignment"] for p, row in found.items() if "error" not in row}
    assert reds == {i: pytest.approx(i / 255) for i in (*range(8), *range(16, 24))}
    assert "row group 0 of the file is damaged" in found["15"]["error"]


@pytest.mark.parametrize("checksums", [False, True])
def test_damaged_texts_of_a_table_cost_their_row_group(tmp_path: Path, checksums: bool) -> None:
    columns = {
        "image": [str(i).encode() for i in range(4000)],
        "prompt": [f"prompt {i}" for i in range(4000)],
    }
    options: Any = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    table = tmp_path / "t.parquet"
    pq.write_table(
        *(pa.table(columns), table),
        row_group_size=1500,
        write_page_checksum=checksums,
        **options,
    )
    content = bytearray(table.read_bytes())
    place = content.index(b"prompt 2999")
    # Another text, which only a checksum tells from the right one; or a length that cannot be.
    content[place - 4 : place] = content[place - 4 : place] if checksums else b"\xff" * 4
    content[place] = ord("P")
    table.write_bytes(content)
    found = [(p.image, p.prompt, p.error, p.load and p.load()) for p in open_pairs([str(table)])]
    (lost,) = [i for i, (_, _, error, _) in enumerate(found) if error]
    assert 1500 <= lost <= 2999
    assert f"t.parquet, rows {lost + 1} to 3000 cannot be read" in found[lost][2]
    numbers = (*range(lost), *range(3000, 4000))
    assert [*found[:lost], *found[lost + 1 :]] == [
        (f"{table}:{i + 1}", f"prompt {i}", "", str(i).encode()) for i in numbers
    ]


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    empty = pa.table({"image": pa.array([], pa.binary()), "prompt": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "0.parquet")
    pq.write_table(pa.table({"image": [png(1)], "prompt": ["a"]}), tmp_path / "1.parquet")
    tar(tmp_path / "2.tar", {"a.txt": b"x"})
    done = score(tmp_path / "*.parquet", tmp_path / "2.tar", "--output", tmp_path / "out")
    assert (done.exit_code, done.stderr.count("It is left out")) == (0, 2), done.output
    done = score(tmp_path / "0.parquet", tmp_path / "2.tar")
    assert "None of 2 tables and shards has a picture." in done.stderr


def test_a_folder_of_parts_is_read_or_its_glob_is_named(tmp_path: Path) -> None:
    for name in ("t.parquet", "parts"):
        (tmp_path / name).mkdir()
        table = pa.table({"image": [png(1)], "prompt": ["a"]})
        pq.write_table(table, tmp_path / name / "0.parquet")
    (tmp_path / "t.parquet/_SUCCESS").touch()
    assert len(rows(tmp_path / "t.parquet")) == 1
    for more in ((), ("--prompt", "a")):
        assert "parts/*.parquet." in score(tmp_path / "parts", *more).stderr


# -- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_shards_are_read_in_place(tmp_path: Path, mode: str) -> None:
    name = "s.tar" + mode[1:].replace(":", ".")
    files = {}
    for i in range(40):
        # The text comes first or last.
        texts = {f"a/{i:02d}.txt": f"red {i}\n".encode()}
        pictures = {f"a/{i:02d}.png": png(5 * i)}
        files |= {**pictures, **texts} if i % 2 else {**texts, **pictures}
    shard = tar(tmp_path / name, files | {"a/._00.png": b"", "b/b.cls": b"1"}, mode)
    found = rows(shard)
    assert [(row["image"], row["prompt"]) for row in found] == [
        (f"{shard}/a/{i:02d}.png", f"red {i}") for i in range(40)
    ]
    assert found[30]["semantic_alignment"] == pytest.approx(150 / 255)
    assert judged_again(tmp_path / "out", shard) == 40
    assert judged_again(tmp_path / "out", shard) == 0


def test_prompts_of_shards_are_texts_or_in_json(tmp_path: Path) -> None:
    about = json.dumps({"caption": "in json", "caption_en": "in English"}).encode()
    shard = tar(tmp_path / "s.tar", {"1.png": png(1), "1.seg.png": png(2), "1.json": about})
    assert [row["prompt"] for row in rows(shard)] == ["in json"] * 2
    assert rows(shard, "--prompt-column", "caption_en")[0]["prompt"] == "in English"
    (row,) = rows(shard, "--image-column", "seg.png")
    assert row["image"] == f"{shard}/1.seg.png"
    assert "has prompts of its own. Leave out" in score(shard, "--prompt", "x").stderr
    bare = tar(tmp_path / "bare.tar", {"1.png": png(1)})
    assert "has no prompt, which is a .txt" in score(bare).stderr
    assert rows(bare, "--prompt", "x")[0]["prompt"] == "x"
    # Beside files, the prompt is that of the files.
    (tmp_path / "a.png").write_bytes(png(3))
    both = rows(tmp_path / "a.png", shard, "--prompt", "x")
    assert [row["prompt"] for row in both] == ["x", "in json", "in json"]


def test_globs_name_shards_and_tables(tmp_path: Path) -> None:
    for i in range(3):
        tar(tmp_path / f"{i}.tar", {f"{i}.png": png(i), f"{i}.txt": b"x"})
        pq.write_table(pa.table({"image": [png(i)], "text": ["x"]}), tmp_path / f"{i}.parquet")
    assert len(rows(tmp_path / "*.tar", tmp_path / "*.parquet")) == 6
    assert "cannot be read: No such file" in score(tmp_path / "z*.tar").stderr


def test_one_bad_sample_costs_only_itself(tmp_path: Path) -> None:
    files = {"1.png": png(1), "1.txt": b"a", "2.png": b"no", "2.txt": b"b", "3.png": png(3)}
    shard = tar(tmp_path / "s.tar", files | {"4.png": png(4), "4.json": b"{", "5.png": png(5)})
    with tarfile.open(shard, "a") as archive:
        link = tarfile.TarInfo("6.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    errors = [row.get("error", "") for row in rows(shard)]
    assert errors[0] == ""
    assert "s.tar/2.png is not: its content is none of" in errors[1]
    assert "s.tar/3 must be a text that is not empty" in errors[2]
    assert "4.json must be JSON" in errors[3]
    assert "s.tar/6 must be a text that is not empty" in errors[5]
    assert len(errors) == 6
    links = rows(shard, "--prompt-column", "cls", "--prompt", "x")
    assert "links in shards are not followed; store the picture" in links[5]["error"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_nothing_behind_a_damaged_header_is_lost_in_silence(tmp_path: Path, mode: str) -> None:
    files = {f"{i}.{kind}": png(i) if kind == "png" else b"x" for i in range(3)
             for kind in ("png", "txt")}  # fmt: skip
    whole = tar(tmp_path / "s.tar", files).read_bytes()
    bad = bytearray(whole)
    bad[2058] ^= 255
    joined = whole + whole
    for content, reason in ((bad, "bad checksum at byte 2048"), (joined, "name them one by one")):
        packed = bytes(content) if mode == "w" else gzip.compress(content)
        (tmp_path / "s.tar").write_bytes(packed)
        found = rows(tmp_path / "s.tar")
        assert reason in found[0]["error"]
        assert len(found) == (2 if content is bad else 4)


def test_a_text_of_a_shard_must_be_utf_8(tmp_path: Path) -> None:
    text = "a red circle".encode("utf-16")
    shard = tar(tmp_path / "s.tar", {"1.png": png(1), "1.txt": text})
    # Of many shards, the message must say which.
    assert f"{shard}/1.txt must be text in UTF-8" in score(shard).stderr
    more = {"1.png": png(1), "1.txt": b"a", "2.png": png(2), "2.txt": text}
    assert "2.txt must be text in UTF-8" in rows(tar(shard, more))[1]["error"]
    both = tar(shard, {"1.png": png(1), "1.json": b'{"text": "a", "caption": "b"}'})
    assert f"{shard}/1.json: More than one column may hold a prompt" in score(both).stderr
    texts = tar(shard, {"1.png": png(1), "1.json": b'{"prompt": ["a", "b"]}'})
    for options in ((), ("--prompt-column", "prompt")):
        assert f"{shard}/1.json: " in score(texts, *options).stderr


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_picture_that_is_too_large_costs_only_itself(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tts_verifier.scoring.sources.shards._MOST_PICTURE_BYTES", 100)
    files = {"1.png": png(1), "1.txt": b"a", "2.png": b"0" * 101, "2.txt": b"b"}
    shard = tar(tmp_path / "s.tar", files | {"3.png": png(3), "3.txt": b"c"}, mode)
    errors = [row.get("error", "") for row in rows(shard)]
    assert [bool(error) for error in errors] == [False, True, False]
    assert "at most 100 bytes, this has 101" in errors[1]


def test_suffixes_are_compared_without_their_case(tmp_path: Path) -> None:
    shard = tar(tmp_path / "s.TBZ2", {"1.SEG.PNG": png(1), "1.TXT": b"a"}, "w:bz2")
    assert len(rows(shard, "--image-column", ".seg.png", "--prompt-column", ".txt")) == 1


def test_a_shard_that_was_cut_short_keeps_what_is_whole(tmp_path: Path) -> None:
    files = {f"{i}.{kind}": png(i) if kind == "png" else b"x" for i in range(9)
             for kind in ("png", "txt")}  # fmt: skip
    for mode, name in (("w", "s.tar"), ("w:gz", "s.tgz")):
        shard = tar(tmp_path / name, files, mode)
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        done = score(shard, "--format", "jsonl")
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert 1 <= sum("error" not in row for row in found) < 9
        if mode == "w":
            assert "s.tar ends without the mark of its end" in done.stderr
        else:
            assert any("s.tgz cannot be read to its end" in row.get("error", "") for row in found)


def test_what_is_no_shard_is_named(tmp_path: Path) -> None:
    for name in ("s.tar", "s.tar.zst"):
        (tmp_path / name).write_bytes(b"no tar" * 500)
        error = score(tmp_path / name).stderr
        assert f"{name} must be a tar file: it is none, nor one that gzip, bzip2 or xz" in error
    assert "cannot be read: No such file" in score(tmp_path / "gone.tar").stderr
    shard = tar(tmp_path / "none.tar", {"a.txt": b"x"})
    with pytest.raises(InputError, match=r"has no picture\. Name its suffix"):
        open_pairs([str(shard)])
