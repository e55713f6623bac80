"""Files of prompts in every format: the texts that were written, or an error with a place.

A case is one file. Half of them are written by other writers (csv, json, pyarrow) from known texts,
in the columns of published sets, with a BOM, with odd line ends and with characters that some
readers take for line ends; the texts must come back one by one, in order, with ids of their own.
The others are damaged at random and may be refused, but not crash.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from faults.harness import Result, WrongError, expect, of_kind
from tts_verifier.errors import InputError
from tts_verifier.runner.prompts import read_prompts
from tts_verifier.types import Prompt

DEFAULT_CASES = 10_000
LIMIT = 10.0
FORMATS = ("txt", "jsonl", "ndjson", "json", "csv", "tsv", "parquet")
_COLUMNS: Mapping[str, tuple[str, str | None]] = {
    "plain": ("prompt", None),
    "with ids": ("prompt", "id"),
    "text": ("text", None),
    "PartiPrompts": ("Prompt", "Category"),
    "DrawBench": ("Prompts", "Category"),
    "GenEval": ("prompt", "tag"),
}
"""Published set -> the column of texts, and one beside it."""
_PIECES = (
    "a red circle", "two cats", "é", "日本語の猫", "😀", 'a sign that says "no, thanks"', "a, b; c",
    "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "null", "nan", "007", "1e5", "=1+1",
    "{}", "[1]", "#", "- x", "'", '"', "\\", "\\n", "<b>", "../x", "\u200b", "\u202e", "None",
)  # fmt: skip

_ODD_BYTES = (
    b"\0", b"\xff\xfe", b'"', b"\n", b"\r", b"\t", b",", b"[" * 50_000, b"{", b"\\ud800",
    b'{"prompt": null}', b'{"prompt": 5, "id": [1]}', b"x" * 200_000, b"\xed\xa0\x80",
)  # fmt: skip


def case(number: int, dice: random.Random, home: Path) -> Result:
    """Writes one file and reads it."""
    form = FORMATS[number % len(FORMATS)]
    suffix = dice.choice((form, form, form.upper(), form.title()))
    path = home / f"prompts.{suffix}"
    columns = dice.choice(list(_COLUMNS))
    texts = [_text(dice) for _ in range(dice.randint(1, 8))]
    if dice.random() < 0.1:
        texts.append(texts[0])
    content = _written(form, texts, columns, dice)
    if dice.random() < 0.5:
        kind = form if form == "txt" else f"{form}, {columns}"
        with of_kind(kind):
            path.write_bytes(content)
            _check(_read(path), texts)
            path.unlink()
        return Result(kind, "right")
    with of_kind(f"{form} damaged"):
        path.write_bytes(_damaged(content, dice))
        try:
            prompts = read_prompts(path)
        except InputError as error:
            expect(path.name in str(error), f"no file in: {error}"[:200])
            return Result(f"{form} damaged", "refused", str(error)[:200])
        finally:
            path.unlink()
        expect(len({p.id for p in prompts}) == len(prompts), "ids twice")
        for prompt in prompts:
            expect(prompt.text.strip() and prompt.id, f"{prompt}")
            (prompt.text + prompt.id + prompt.category).encode()
    return Result(f"{form} damaged", "right")


def _read(path: Path) -> Sequence[Prompt]:
    try:
        return read_prompts(path)
    except InputError as error:
        raise WrongError(f"a good file is refused: {error}"[:280]) from error


def _check(prompts: Sequence[Prompt], texts: Sequence[str]) -> None:
    """Raises WrongError unless prompts are the texts, each with an id of its own."""
    read = [p.text.strip() for p in prompts]
    wanted = [text.strip() for text in texts]
    expect(read == wanted, f"{wanted} read as {read}"[:280])
    expect(len({p.id for p in prompts}) == len(prompts), "ids twice")


def _text(dice: random.Random) -> str:
    """Returns a text that is more than space, and that no reader should take for absent."""
    middle = "".join(dice.choices(_PIECES, k=dice.randint(0, 3)))
    return f"{dice.choice(('a cat', 'x', '猫'))}{middle}{dice.randrange(10**6)}"


def _written(form: str, texts: Sequence[str], columns: str, dice: random.Random) -> bytes:
    text_column, other = _COLUMNS[columns]
    # Of a set that repeats a text, only ids keep apart what is meant twice.
    rows = [
        {text_column: text} | ({other: f"v{i}"} if other else {}) for i, text in enumerate(texts)
    ]
    end = dice.choice(("\n", "\r\n"))
    if form == "txt":
        blank = dice.choice(("", end, f"  {end}"))
        return _encoded(end.join(texts) + end + blank, dice)
    if form in ("jsonl", "ndjson"):
        ascii_only = dice.random() < 0.5
        return _encoded("".join(json.dumps(r, ensure_ascii=ascii_only) + end for r in rows), dice)
    if form == "json":
        items = texts if columns == "plain" and dice.random() < 0.5 else rows
        return _encoded(json.dumps(items, ensure_ascii=False, indent=dice.choice((None, 2))), dice)
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([{**row, "n": 1} for row in rows]), sink)
        return sink.getvalue()
    sheet = io.StringIO(newline="")
    names = [text_column, *([other] if other else []), "Note"]
    writer = csv.DictWriter(
        sheet, names, delimiter="\t" if form == "tsv" else ",", lineterminator=end
    )
    writer.writeheader()
    writer.writerows(rows)
    return _encoded(sheet.getvalue(), dice)


def _encoded(text: str, dice: random.Random) -> bytes:
    return text.encode("utf-8-sig" if dice.random() < 0.2 else "utf-8")


def _damaged(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(changed) + 1)
        action = dice.randrange(6)
        if action == 0:
            del changed[place:]
        elif action == 1 and place < len(changed):
            changed[place] ^= 1 << dice.randrange(8)
        elif action == 2:
            changed[place:place] = dice.choice(_ODD_BYTES)
        elif action == 3:
            del changed[place : place + 9]
        elif action == 4:
            return changed.decode("utf-8", "replace").encode(dice.choice(("utf-16", "utf-32-le")))
        else:
            changed = changed[place:]
    return bytes(changed)
