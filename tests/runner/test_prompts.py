"""Prompts from files of published sets, from tables in Python, and texts that occur twice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_verifier.errors import InputError
from tts_verifier.log import read_trials
from tts_verifier.recipe.recipe import prompts_of_recipe
from tts_verifier.runner import as_prompts, read_prompts, run
from tts_verifier.strategies import BestOfN, ZeroOrder
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Prompt


def read(folder: Path, name: str, content: str | bytes, **columns: str) -> tuple[Prompt, ...]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompts(folder / name, **columns)


# -- published sets ----------------------------------------------------------------------------

SETS = {
    "PartiPrompts.tsv": "Prompt\tCategory\tChallenge\tNote\n42\tAbstract\tBasic\tnumbers\n",
    "DrawBench.csv": "\ufeffPrompts,Category\r\n42,Abstract\r\n",
    "evaluation_metadata.jsonl": '{"tag": "Abstract", "include": [{"class": "x", "count": 1}], '
    '"prompt": "42"}\n',
    "geneval2_data.jsonl": '{"prompt": 42, "atom_count": 7, "vqa_list": [["How?", "4"]], '
    '"skills": ["count"], "category": "Abstract"}',
    "train_metadata.JSONL": '{"tag": "Abstract", "prompt": "42", "exclude": []}\r\n\r\n',
    "genai.json": '{"0000": {"id": "0000", "prompt": "42", "tag": "Abstract"}}',
    "pandas.json": '{"prompt": {"0": 42}, "category": {"0": "Abstract"}}',
    "list.json": '[{"text": "42", "category": "Abstract", "prompt": null}]',
    "semicolons.csv": "category;prompt\nAbstract;42\n",
}


@pytest.mark.parametrize("name", SETS)
def test_published_sets_are_read_with_their_categories(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name, SETS[name]) == (Prompt("0000", "42", "Abstract"),)


def test_text_files_and_parquet_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, "color_val.txt", "a red car\ra dog\r\n\r\na\u2028cat\n") == (
        Prompt("0000", "a red car"),
        Prompt("0001", "a dog"),
        Prompt("0002", "a\u2028cat"),
    )
    frame = pd.DataFrame({"caption": ["a", "b"], "id": [7, None], "tag": [None, 2.5]})
    frame.to_parquet(tmp_path / "p.parquet")
    expected = (Prompt("7", "a"), Prompt("0001", "b", "2.5"))
    assert read_prompts(tmp_path / "p.parquet") == expected == as_prompts(frame)


def test_what_is_given_is_read_as_it_is_meant(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat")
    assert as_prompts(tmp_path / "p.txt") == (Prompt("0000", "a cat"),)
    frame = pd.DataFrame({"Prompt": ["a cat", "a dog"], "Category": ["x", "y"]})
    result = run(frame, FakeGenerator(), FakeVerifier(), BestOfN(1))
    assert [t.prompt for t in result.trials] == [
        Prompt("0000", "a cat", "x"),
        Prompt("0001", "a dog", "y"),
    ]
    assert as_prompts(frame.Prompt) == as_prompts(["a cat", "a dog"])


def test_a_column_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "caption,text,kind\na,b,c\n"
    with pytest.raises(
        InputError,
        match=r"p\.csv: More than one column may hold a prompt: caption, text\. The columns are: "
        r"caption, text, kind\. Rename a column, or name it: read_prompts\(path, column=",
    ):
        read(tmp_path, "p.csv", content)
    expected = (Prompt("0000", "b", "c"),)
    assert read(tmp_path, "p.csv", content, column="text", category="kind") == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    named = {"file": "~/p.csv", "column": "text", "category": "kind"}
    assert prompts_of_recipe(named, Path("elsewhere")) == expected
    with pytest.raises(InputError, match=r"There is no column 'x'\. The columns are: caption"):
        read(tmp_path, "p.csv", content, column="x")
    with pytest.raises(InputError, match=r"p\.csv:2: Prompt 0 .*The columns are: left, right\. Re"):
        read(tmp_path, "p.csv", "left,right\na,b\n")


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("p.csv", "prompt,n\na,1\n ,2\n", "p.csv:3"),
        ("p.tsv", "prompt\tn\na\t1\n\t2\n", "p.tsv:3"),
        ("p.jsonl", '"a"\n\n{"prompt": null}', "p.jsonl:3"),
        ("p.json", '["a", ""]', "p.json, entry 2"),
    ],
)
def test_an_empty_prompt_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, place: str
) -> None:
    with pytest.raises(InputError, match=rf"{place}: Prompt 1 must be a text that is not empty"):
        read(tmp_path, name, content)


def test_other_files_and_unreadable_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be .txt or a table \(\.csv, .*got a cat\. One pro"):
        read_prompts(Path("a cat"))
    with pytest.raises(InputError, match=r"The prompts .*p\.csv must be UTF-8, it is UTF-16"):
        read(tmp_path, "p.csv", "prompt\na".encode("utf-16"))
    with pytest.raises(InputError, match=r"p\.csv: A run needs at least one prompt"):
        read(tmp_path, "p.csv", "prompt,category\n")


# -- texts that occur twice ----------------------------------------------------------------------


def test_a_text_that_occurs_twice_has_images_of_its_own(tmp_path: Path) -> None:
    parts = (FakeGenerator(), FakeVerifier(), BestOfN(3))
    alone = run(["a", "b"], *parts)
    result = run(["a", "b", "a", "a"], *parts, folder=tmp_path)
    assert len({t.id for t in result.trials}) == 12
    assert len({t.proposal.seed for t in result.trials}) == 12
    # What was drawn before a text was repeated stays what it was.
    assert [t.id for t in result.trials if t.prompt.id in ("0000", "0001")] == [
        t.id for t in alone.trials
    ]
    generator = FakeGenerator()
    again = run(["a", "b", "a", "a"], generator, *parts[1:], folder=tmp_path)
    assert generator.trace == []
    assert {k: c.trial.id for k, c in again.choices.items()} == {
        k: c.trial.id for k, c in result.choices.items()
    }
    assert {t.id for t in read_trials(tmp_path)} == {t.id for t in result.trials}


def test_a_strategy_with_parents_and_fixed_seeds_keeps_repeats_apart() -> None:
    result = run(["a", "a"], FakeGenerator(), FakeVerifier(), ZeroOrder(neighbours=2, rounds=2))
    assert len({t.id for t in result.trials}) == len(result.trials) == 10
    own = {t.id: t.prompt.id for t in result.trials}
    assert all(own[t.parent_id] == t.prompt.id for t in result.trials if t.parent_id)

    class Fixed(BestOfN):
        def propose(self, task, history):
            return super().propose(replace(task, seed=0), history)

    fixed = run(["a", "a"], FakeGenerator(), FakeVerifier(), Fixed(2))
    assert len({t.id for t in fixed.trials}) == 4


def test_ids_that_rows_came_with_are_kept_and_others_are_free() -> None:
    prompts = as_prompts([{"id": "0001", "text": "a"}, "b", {"id": None, "text": "a"}])
    assert [(p.id, p.repeat) for p in prompts] == [("0001", 0), ("0001+", 0), ("0002", 1)]
    with pytest.raises(InputError, match="Prompts 0 and 2 have the same id, 'x'"):
        as_prompts([{"id": "x", "text": "a"}, "b", {"id": "x", "text": "c"}])


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1))
def test_ids_are_unique_whatever_repeats(texts: list[str]) -> None:
    prompts = as_prompts([json.loads(json.dumps({"prompt": text})) for text in texts])
    assert [p.text for p in prompts] == texts
    assert len({p.id for p in prompts}) == len({(p.text, p.repeat) for p in prompts}) == len(texts)


def test_a_table_of_arrow_is_read_and_an_array_of_no_axis_is_no_list() -> None:
    table = pa.table({"prompt": ["a cat", "a dog"], "category": ["x", "y"]})
    assert [(p.text, p.category) for p in as_prompts(table)] == [("a cat", "x"), ("a dog", "y")]
    with pytest.raises(InputError, match="A list of prompts is needed, got array"):
        as_prompts(np.array("a cat"))
