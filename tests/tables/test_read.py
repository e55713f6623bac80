"""Rows of every kind of file, as published sets have them; what is refused has its line."""

import csv
import io
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tts_verifier.errors import InputError
from tts_verifier.tables import IMAGE_ROLE, PROMPT_ROLE, RoleColumns, read_table, rows_of
from tts_verifier.tables.rows import Row

# Everything that Unicode, but not a file, calls a line end; and what csv and JSON escape.
ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei \"x\", 'y'; \\ \t|"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(path: Path) -> list[object]:
    return [row.value for row in read_table(path)]


# -- writers, as users have them ---------------------------------------------------------------


def as_csv(texts: list[str], delimiter: str = ",") -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(["Prompt", "Category"])
    writer.writerows([text, "x"] for text in texts)
    return buffer.getvalue().encode()


def as_parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"Prompt": texts, "picture": [b"\xff"] * len(texts)}), buffer)
    return buffer.getvalue()


def as_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"Prompt": t}, ensure_ascii=False) + "\n" for t in texts).encode()


WRITERS = {
    "p.csv": as_csv,
    "q.csv": lambda texts: as_csv(texts, ";"),
    "p.tsv": lambda texts: as_csv(texts, "\t"),
    "p.jsonl": as_lines,
    "p.NDJSON": as_lines,
    "q.json": as_lines,
    "p.json": lambda texts: json.dumps([{"Prompt": text} for text in texts]).encode(),
    "r.json": lambda texts: json.dumps({"Prompt": texts}).encode(),
    "s.json": lambda texts: pd.DataFrame({"Prompt": texts}).to_json().encode(),
    "t.json": lambda texts: json.dumps(
        {f"{i}": {"Prompt": t} for i, t in enumerate(texts)}
    ).encode(),
    "p.Parquet": as_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)))
@example([ODD, " a", "b ", '"', '""', '"a" b', '"a"', "a\nb", "a\rb", "a\r\nb", ",", "\t", "None"])
def test_any_texts_come_back_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, name: str, texts: list[str]
) -> None:
    texts = [text for text in texts if text.strip()]
    # Nobody can tell these forms without a row from an empty object.
    if not texts and name in ("q.json", "s.json", "t.json"):
        return
    path = write(tmp_path_factory.mktemp("t"), name, WRITERS[name](texts))
    rows = read_table(path)
    prompts = RoleColumns(rows, PROMPT_ROLE)
    assert [prompts.cell(row, "") for row in rows] == texts
    assert len({row.place for row in rows}) == len(rows)


@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"))))
@example([ODD])
def test_lines_of_text_end_at_line_ends_only(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    kept = [text.strip() for text in texts if text.strip()]
    folder = tmp_path_factory.mktemp("t")
    for end in ("\n", "\r\n", "\r"):
        path = write(folder, "p.TXT", b"\xef\xbb\xbf" + end.join(texts).encode())
        # The mark is dropped once: a text may begin with another.
        assert values(path) == kept


# -- published sets ----------------------------------------------------------------------------


def test_partiprompts_keeps_its_quotation_marks(tmp_path: Path) -> None:
    text = (
        "Prompt\tCategory\tChallenge\tNote\n"
        "42\tAbstract\tBasic\tSimple numbers\n"
        'The words "Fly an airplane" are written\tArts\tComplex\t\n'
        '"Hello" says a sign\tArts\tComplex\tLongest word: "a lung disease"\n'
        '"Two" and "three"\tArts\tComplex\n'
        '"a ""quoted"" cell, with\ta tab and\na line"\tArts\t\t\n'
        '"open\tArts\t\t\n'
    )
    rows = read_table(write(tmp_path, "PartiPrompts.tsv", text))
    assert [row.value["Prompt"] for row in rows] == [
        "42",
        'The words "Fly an airplane" are written',
        '"Hello" says a sign',
        '"Two" and "three"',
        'a "quoted" cell, with\ta tab and\na line',
        '"open',
    ]
    assert rows[2].value["Note"] == 'Longest word: "a lung disease"'
    assert [row.place.rpartition(":")[2] for row in rows] == ["2", "3", "4", "5", "6", "8"]


def test_tables_without_a_usual_column_have_the_names_of_their_first_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "left,right\n1,\n\n2,3,\n")
    assert values(path) == [{"left": "1", "right": ""}, {"left": "2", "right": "3"}]
    assert [row.place for row in read_table(path)] == [f"{path}:2", f"{path}:4"]
    assert values(write(tmp_path, "empty.csv", "")) == []
    assert values(write(tmp_path, "empty.tsv", "")) == []


def test_parquet_columns_that_hold_no_text_are_not_read(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"], "image": [{"bytes": b"\xff"}], "n": [1.5], "tags": [["x"]]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert values(tmp_path / "p.parquet") == [{"prompt": "a", "n": 1.5}]


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.tsv", "p.json", "p.jsonl", "p.ndjson"])
def test_other_encodings_are_named(tmp_path: Path, name: str) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        with pytest.raises(InputError, match=rf"{name} must be UTF-8, it is UTF-16 or UTF-32"):
            read_table(write(tmp_path, name, "prompt\na cat".encode(encoding)))
    for end in (b"\n", b"\r\n", b"\r"):
        content = b"prompt" + end + "Salvador Dalí".encode("latin-1")
        with pytest.raises(InputError, match=rf"{name}:2 must be UTF-8: .* \(0xed\)"):
            read_table(write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", 'prompt,x\na,b\n"a"b,c', r"p\.csv:3 must be CSV: .*'"),
        ("p.csv", 'prompt\na\n"b', r"p\.csv:3 must be CSV: unexpected end"),
        ("p.csv", "prompt\na cat, a dog\n", r"p\.csv:2 has 2 cells, the first line names 1 "),
        ("p.tsv", "prompt\na\tdog\n", r"p\.tsv:2 has 2 cells"),
        ("p.csv", "prompt,prompt\na,b", r"p\.csv:1 names two columns 'prompt'"),
        ("p.jsonl", '"a"\n{', r"p\.jsonl:2 must be JSON"),
        ("p.json", '[\n"a",\n', r"p\.json:\d must be JSON"),
        ("p.json", "[" * 100_000, r"p\.json must be JSON: maximum recursion"),
        ("p.json", "5", r"p\.json must hold a list of texts or objects.*got int"),
        ("p.json", '{"a": "b"}', "must hold a list of texts or objects"),
        ("p.json", '"a"\n{', r"p\.json:2 must be JSON"),
        ("p.parquet", "PAR1", r"p\.parquet must be a Parquet file"),
        ("p.xlsx", "", r"must be one of \.txt, \.csv, .*, got .*p\.xlsx"),
    ],
)
def test_what_is_no_table_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        read_table(write(tmp_path, name, content))


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_what_cannot_be_read_is_named_at_once(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_table(tmp_path / f"gone{suffix}")
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with pytest.raises(InputError, match="cannot be read: a regular file is needed, this is a nam"):
        read_table(tmp_path / f"pipe{suffix}")


@given(st.sampled_from([*WRITERS, "p.txt"]), st.binary(max_size=60), st.integers(0, 200))
def test_any_bytes_are_rows_or_a_clear_error(
    tmp_path: Path, name: str, junk: bytes, place: int
) -> None:
    whole = WRITERS.get(name, as_csv)(["a cat", "a dog"])
    path = write(tmp_path, name, whole[:place] + junk + whole[place + len(junk) :])
    try:
        assert isinstance(read_table(path), list)
    except InputError as error:
        assert path.name in str(error)  # noqa: PT017


# -- columns -----------------------------------------------------------------------------------


def test_columns_are_found_by_their_usual_names() -> None:
    for name in ("prompt", "Prompts", " TEXT ", "caption"):
        assert (
            RoleColumns([Row({name: "a", "n": 1})], PROMPT_ROLE).cell(Row({name: "a"}), "") == "a"
        )
    both = [Row({"prompt": None, "text": "b"}), Row({"text": "c"}), Row({"prompt": "d"})]
    assert [RoleColumns(both, PROMPT_ROLE).cell(row, "") for row in both] == ["b", "c", "d"]


def test_two_columns_of_the_same_kind_are_ambiguous() -> None:
    rows = [Row({"caption": "a", "text": "b", "n": 1})]
    with pytest.raises(
        InputError,
        match=r"may hold a prompt: caption, text\. The columns are: caption, text, n\. Say which\.",
    ):
        RoleColumns(rows, PROMPT_ROLE, remedy="Say which.")
    assert RoleColumns(rows, PROMPT_ROLE, "caption").cell(rows[0], "") == "a"
    with pytest.raises(InputError, match=r"no column 'x'\. The columns are: caption, text, n\."):
        RoleColumns(rows, PROMPT_ROLE, "x")
    assert not RoleColumns(rows, IMAGE_ROLE).found


@pytest.mark.parametrize(
    ("value", "text"),
    [(42, "42"), (1.0, "1"), (0.5, "0.5"), (None, None), (float("nan"), None), (pd.NA, None)],
)
def test_numbers_are_texts_and_null_is_absent(value: object, text: str | None) -> None:
    row = Row({"prompt": value})
    assert RoleColumns([row], PROMPT_ROLE).cell(row, "") == text


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, b"a"])
def test_other_values_are_refused(value: object) -> None:
    row = Row({"prompt": value})
    with pytest.raises(InputError, match="Row 3 must have a text or a number as prompt, got"):
        RoleColumns([row], PROMPT_ROLE).cell(row, "Row 3")


def test_tables_in_python_have_rows() -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "n": [1, 2]})
    expected = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]
    for table in (frame, pa.Table.from_pandas(frame), frame.to_dict("records")):
        assert [row.value for row in rows_of(table)] == expected
    assert [row.value for row in rows_of(frame.prompt)] == ["a", "b"]
    assert [row.value for row in rows_of(pa.array(["a", "b"]))] == ["a", "b"]
