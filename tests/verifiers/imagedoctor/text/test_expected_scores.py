"""Digits alone are asked for, and their probabilities make scores that seldom tie."""

import numpy as np
import pytest
from tiny_imagedoctor import example

from tts_verifier import Verifier, shapes
from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load, resolve
from tts_verifier.verifiers.imagedoctor.text.answer_template import ANSWER, Skeleton
from tts_verifier.verifiers.imagedoctor.text.expected_scores import Numerals, expected
from tts_verifier.verifiers.imagedoctor.text.instruction import Words
from tts_verifier.verifiers.imagedoctor.text.reply import parse

CAPTIONS = ["three green stars", "two red rings", "a blue cross left of a red circle"]


def said(pieces, odds):
    """Expected semantic alignment of a reply in pieces; `odds`: by piece, of digits and units."""
    text, table = "".join(pieces), np.zeros((len(pieces), 12), np.float32)
    for place, row in odds.items():
        for column, value in row.items():
            table[place, column] = value
    found = expected(parse(text, reasoning=False), text, pieces, table)
    return found["semantic_alignment_expected"]


def test_every_digit_counts_with_its_probabilities():
    pieces = ["semantic alignment score: ", "0", ".", "4", "2", "</answer>"]
    odds = {1: {10: 1.0}, 3: {4: 0.75, 5: 0.25}, 4: {2: 0.5, 3: 0.5}}
    assert said(pieces, odds) == pytest.approx(0.4 + 0.025 + 0.025)
    assert said(pieces, odds | {1: {10: 0.9, 11: 0.1}}) == pytest.approx(0.1 + 0.9 * 0.45)


def test_a_one_counts_against_just_less():
    odds = {1: {10: 0.2, 11: 0.8}}
    assert said(["semantic alignment score: ", "1.", "0", "0"], odds) == pytest.approx(0.998)


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        (["semantic alignment score: ", "0.42"], 0.42),
        (["semantic alignment score: ", "0", ".", "42"], 0.42),
        (["semantic alignment score:", " .5"], 0.5),
        (["semantic alignment score: ", "1"], 1.0),
        (["semantic alignment score: 0", ".", "4"], 0.4),
        (["nothing"], float("nan")),
    ],
)
def test_what_is_not_written_digit_by_digit_is_taken_as_it_is(pieces, written):
    assert said(pieces, {}) == pytest.approx(written, nan_ok=True)


def test_letters_of_several_tokens_before_the_answer_do_not_shift_it():
    pieces = ["\ufffd", "\ufffd", "</think><answer>", "Semantic alignment score: ", "0.", "8", "1"]
    text = "é</think><answer>Semantic alignment score: 0.81"
    odds = np.zeros((7, 12), np.float32)
    odds[4, 10] = odds[5, 8] = odds[6, 1] = 1
    found = expected(parse(text, reasoning=True), text, pieces, odds)
    assert found["semantic_alignment_expected"] == pytest.approx(0.81)


def test_a_skeleton_is_the_answer_with_its_digits_open(tmp_path):
    example().make(tmp_path)
    for folder in (resolve("shapes"), tmp_path):
        kept = load(folder, device="cpu")
        numerals = Numerals.of(kept.words)
        made = Skeleton.of(kept.words, kept.model.config, numerals)
        ids = [*made.before]
        for turn in made.turns:
            ids += [turn.choices[0], *turn.forced]
        text = kept.words.decode([*ids, *made.after])
        assert text == ANSWER.replace("<|misalignment|>", "").replace("<|artifact|>", "")
        assert len(made.turns) == 12


def test_the_bundled_verifier_writes_the_same_numbers_with_and_without():
    pictures = [shapes.render(CAPTIONS[i % 3], seed=i) for i in range(6)]
    captions = [CAPTIONS[i // 2] for i in range(6)]
    free, filled = (
        Verifier.from_pretrained("shapes", device="cpu", heatmaps=True, batch_size=4, skeleton=s)
        for s in (False, True)
    )
    one = free.verify(pictures, captions, detail="score")
    other = filled.verify(pictures, captions, detail="score")
    for a, b in zip(one, other, strict=True):
        assert a.text == b.text
        assert a.scores == pytest.approx(b.scores, abs=1e-5)
        for name in ("misalignment", "artifact"):
            assert np.abs(a.heatmaps[name] - b.heatmaps[name]).max() < 1e-4
    assert len({v.scores["semantic_alignment_expected"] for v in other}) == 6
    reasons = filled.verify(pictures[:1], captions[:1])
    assert reasons[0].text.startswith("<think>")


def test_a_tokenizer_that_joins_digits_has_no_skeleton(monkeypatch):
    monkeypatch.setattr(Words, "encode", lambda self, text: [hash(text) % 100])
    checkpoint = load(resolve("shapes"), device="cpu")
    assert checkpoint.limits.watched_groups == ()
    with pytest.raises(InputError, match="skeleton needs a checkpoint whose tokenizer writes"):
        Verifier.from_pretrained("shapes", device="cpu", skeleton=True)
