"""An answer template asks for digits alone; the scores are those of a free reply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_imagedoctor import example

from tts_verifier import Verifier, shapes
from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import (
    find_checkpoint,
    load_checkpoint,
)
from tts_verifier.verifiers.imagedoctor.text.answer_template import TEMPLATE_TEXT, AnswerTemplate
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

PROMPTS = ["three green stars", "two red rings", "a blue cross left of a red circle"]


def test_a_template_is_the_answer_with_its_digits_open(tmp_path: Path) -> None:
    example().make(tmp_path)
    for folder in (find_checkpoint("shapes"), tmp_path):
        c = load_checkpoint(folder, device="cpu")
        template = AnswerTemplate.from_tokenizer(c.tokenizer, c.model.config)
        ids = [*template.before]
        for step in template.forced_steps:
            ids += [step.choices[0], *step.forced]
        text = c.tokenizer.decode([*ids, *template.after])
        assert text == TEMPLATE_TEXT.replace("<|misalignment|>", "").replace("<|artifact|>", "")
        assert len(template.forced_steps) == 12


def test_the_bundled_verifier_writes_the_same_numbers_with_and_without() -> None:
    images = [shapes.render(PROMPTS[i % 3], seed=i) for i in range(6)]
    prompts = [PROMPTS[i // 2] for i in range(6)]
    free, filled = (
        Verifier.from_pretrained(
            "shapes", device="cpu", heatmaps=True, batch_size=4, answer_template=template
        )
        for template in (False, True)
    )
    one = free.verify(images, prompts, detail="score")
    other = filled.verify(images, prompts, detail="score")
    for a, b in zip(one, other, strict=True):
        assert a.text == b.text
        assert a.scores == pytest.approx(b.scores, abs=1e-5)
        for name in ("misalignment", "artifact"):
            assert np.abs(a.heatmaps[name] - b.heatmaps[name]).max() < 1e-4
    assert len({v.scores["semantic_alignment_expected"] for v in other}) == 6
    reasons = filled.verify(images[:1], prompts[:1])
    assert reasons[0].text.startswith("<think>")


def test_a_tokenizer_that_joins_digits_has_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptTokenizer, "encode", lambda self, text: [hash(text) % 100])
    checkpoint = load_checkpoint(find_checkpoint("shapes"), device="cpu")
    assert checkpoint.limits.watched_groups == ()
    with pytest.raises(InputError, match="whose tokenizer writes scores digit by digit"):
        Verifier.from_pretrained("shapes", device="cpu", answer_template=True)
