"""What is no list of items is refused with what to pass, wherever a list is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from tts_verifier.errors import InputError
from tts_verifier.images import as_images, as_list
from tts_verifier.runner import run
from tts_verifier.runner.prompts import as_prompts
from tts_verifier.scoring import find_images, score_files, score_into
from tts_verifier.shapes.verifiers import OracleVerifier
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier

TEXTS = ["a cat", "a dog"]


LISTS = [
    TEXTS,
    tuple(TEXTS),
    np.array(TEXTS),
    np.array(TEXTS, object),
    pd.Series(TEXTS),
    iter(TEXTS),
    pa.array(TEXTS),
    pa.chunked_array([TEXTS]),
]
NO_LISTS = [
    ("a cat", r"got one str: 'a cat'\. Put it into a list"),
    (b"a cat", "got one bytes"),
    (Path("a.png"), "got one .*Path: 'a.png'"),
    ({"prompt": TEXTS}, "got a dict, whose items are the names of its columns or keys. Pass one"),
    (pd.DataFrame({"prompt": TEXTS}), "got a DataFrame, whose items are the names of its columns"),
    (pa.table({"prompt": TEXTS}), "got a Table, whose items .* Pass one of its columns"),
    (set(TEXTS), "got a set, which has no order. Sort it into a list"),
    (np.array([TEXTS]), "got a ndarray of 2 axes. Pass a list"),
    (5, "got a int. Pass a list"),
    (None, "got a NoneType. Pass a list"),
]


@pytest.mark.parametrize("values", LISTS, ids=lambda v: type(v).__name__)
def test_whatever_is_a_list_of_texts_is_read(values: Any) -> None:
    assert as_list(values, "texts") == TEXTS


@pytest.mark.parametrize(("values", "message"), NO_LISTS)
def test_what_is_no_list_is_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"A list of texts is needed, {message}"):
        as_list(values, "texts")


PICTURES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]


@pytest.mark.parametrize("verifier", [FakeVerifier(), OracleVerifier()])
@pytest.mark.parametrize("prompts", ["cat", b"cat", {"a": 1, "b": 2, "c": 3}, {"a", "b", "c"}])
def test_a_verifier_never_judges_letters_or_keys(verifier: Any, prompts: Any) -> None:
    with pytest.raises(InputError, match="A list of prompts is needed"):
        verifier.verify(PICTURES, prompts)


def test_a_verifier_reads_every_kind_of_list() -> None:
    pictures = np.empty(2, object)
    pictures[:] = PICTURES[:2]
    wanted = [v.scores for v in FakeVerifier().verify(PICTURES[:2], TEXTS)]
    for prompts in (np.array(TEXTS), pd.Series(TEXTS), tuple(TEXTS), iter(TEXTS)):
        verdicts = FakeVerifier().verify(pictures, prompts)
        assert [v.scores for v in verdicts] == wanted


@pytest.mark.parametrize("prompt", [["a", "b", "c"], None, b"a", 5])
def test_rerank_takes_one_text(prompt: Any) -> None:
    with pytest.raises(InputError, match="rerank needs one prompt as a text, got a "):
        FakeVerifier().rerank(PICTURES, prompt)


@pytest.mark.parametrize(
    "images", [{"a.png": 1}, pd.DataFrame({"prompt": ["a"]}), b"a.png", set(), 5]
)
def test_images_are_a_list_too(images: Any) -> None:
    with pytest.raises(InputError, match="A list of images is needed"):
        as_images(images)


@pytest.mark.parametrize("prompts", ["a cat", b"a cat", {"a": 1}, {"a", "b"}, 5])
def test_a_run_takes_a_list_of_prompts(prompts: Any) -> None:
    with pytest.raises(InputError, match="A list of prompts is needed"):
        run(prompts, FakeGenerator(), FakeVerifier(), BestOfN(1))


def test_a_run_reads_every_kind_of_list() -> None:
    for prompts in (np.array(TEXTS), pd.Series(TEXTS), iter(TEXTS), pa.array(TEXTS)):
        assert [prompt.text for prompt in as_prompts(prompts)] == TEXTS


@pytest.mark.parametrize("paths", ["a.png", Path("a.png"), {"a.png": 1}])
def test_files_to_score_are_a_list(paths: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="A list of paths is needed"):
        score_files(FakeVerifier(), paths, "a")
    with pytest.raises(InputError, match="A list of paths is needed"):
        score_into(tmp_path / "a.jsonl", FakeVerifier(), paths, prompt="a")
    with pytest.raises(InputError, match="A list of patterns is needed"):
        find_images(paths)
