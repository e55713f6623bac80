"""Atoms from a file, a mapping or by rules; both means; what the reply lists."""

import json
import math
from pathlib import Path

import pytest
from tiny_imagedoctor import noise
from tiny_judges import save_judge

from tts_verifier.errors import InputError
from tts_verifier.testing import check_verifier
from tts_verifier.verifiers.vision_language.atoms import Atom, read_atoms, split_prompt
from tts_verifier.verifiers.vision_language.soft_tifa import SoftTIFA
from tts_verifier.verifiers.vision_language.vqascore import VQAScore

IMAGES = [noise(60, 60), noise(60, 90, 1)]
ATOMS = {
    "two white cows": [["How many cows are there?", "two"], ["Are the cows white?", "Yes"]],
    "a cat": ["Is there a cat?"],
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory):
    return VQAScore(save_judge(tmp_path_factory.mktemp("judge"))).engine


def test_the_scores_are_the_means_of_the_probabilities_that_the_reply_lists(engine) -> None:
    judge = SoftTIFA(engine, atoms=ATOMS)
    check_verifier(judge, IMAGES, list(ATOMS))
    verdict = judge.verify(IMAGES[:1], ["two white cows"])[0]
    lines = [json.loads(line) for line in verdict.text.splitlines()]
    p, q = (line["probability"] for line in lines)
    assert verdict.scores["soft_tifa_am"] == pytest.approx((p + q) / 2, abs=1e-5)
    assert verdict.scores["soft_tifa_gm"] == pytest.approx(math.sqrt(p * q), abs=1e-5)
    assert [(line["question"], line["answer"]) for line in lines] == [
        ("How many cows are there?", "two"),
        ("Are the cows white?", "Yes"),
    ]


def test_one_atom_is_vqascore_with_its_question(engine) -> None:
    alone = VQAScore(engine, question="{} Answer in one word.")
    expected = alone.verify(IMAGES[:1], ["Is there a cat?"])[0].scores["vqascore"]
    # "Yes" is the only one of its forms that is a token of this tokenizer.
    scores = SoftTIFA(engine, atoms=ATOMS).verify(IMAGES[:1], ["a cat"])[0].scores
    assert scores["soft_tifa_am"] == pytest.approx(expected, abs=1e-6)
    assert scores["soft_tifa_gm"] == pytest.approx(expected, abs=1e-6)


def test_without_atoms_a_prompt_is_split(engine) -> None:
    text = SoftTIFA(engine).verify(IMAGES[:1], ["a red cube, and a ball left of it"])[0].text
    assert [json.loads(line)["question"] for line in text.splitlines()] == [
        'Does this image show "a red cube"?',
        'Does this image show "a ball left of it"?',
    ]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", ["a cat"]),
        ("a cat and a dog", ["a cat", "a dog"]),
        ("a cat, a dog; in the rain.", ["a cat", "a dog", "in the rain"]),
        ("a cat, a cat", ["a cat"]),
        ("1.5 metres of sand", ["1.5 metres of sand"]),
        ("and", ["and"]),
    ],
)
def test_parts_end_at_punctuation_and_at_and(prompt: str, parts: list[str]) -> None:
    assert split_prompt(prompt, "{}") == [Atom(part) for part in parts]


def test_forms_of_an_answer_are_its_cases_and_a_numbers_digit() -> None:
    assert Atom("?").forms == ("Yes", " Yes", "yes", " yes")
    assert {"four", "Four", "4", " 4"} <= set(Atom("How many?", "four").forms)


def test_atoms_are_read_from_prompt_files_as_geneval_2_has_them(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a cat", "atom_count": 1, "vqa_list": [["Is there a cat?", "Yes"]]},
        {"prompt": "nothing", "vqa_list": None},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_atoms(tmp_path / "a.jsonl") == {"a cat": [Atom("Is there a cat?")]}
    (tmp_path / "a.csv").write_text('prompt,atoms\na cat,"[""Is there a cat?""]"\n')
    assert read_atoms(str(tmp_path / "a.csv")) == {"a cat": [Atom("Is there a cat?")]}


def test_files_without_atoms_and_atoms_that_are_none_are_refused(tmp_path: Path, engine) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt,size\na cat,3\n")
    with pytest.raises(InputError, match="needs a column of prompts and one of vqa_list, atoms"):
        read_atoms(file)
    file.write_text("prompt,atoms\na cat,3\n")
    with pytest.raises(InputError, match=r"a\.csv:2: atoms must be a list of questions"):
        read_atoms(file)
    with pytest.raises(InputError, match="'a cat': atoms must be a list of questions"):
        SoftTIFA(engine, atoms={"a cat": []})
    with pytest.raises(InputError, match="'thirteen' to 'How many\\?' is several"):
        SoftTIFA(engine, atoms={"a cat": [["How many?", "thirteen"]]})


def test_a_prompt_without_atoms_is_refused(engine) -> None:
    with pytest.raises(InputError, match="was given none for 'a dog'"):
        SoftTIFA(engine, atoms=ATOMS).verify(IMAGES[:1], ["a dog"])
