"""Texts are encoded once."""

import numpy as np
import pytest
import tiny_families
import torch

from tts_verifier import BestOfN, run
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.prompt_cache import Texts
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Draw, Job, Prompt


@pytest.mark.parametrize("name", ["sd3", "flux", "z_image"])
def test_each_text_is_encoded_once_for_all_candidates_and_rounds(name, tmp_path):
    family = tiny_families.FAMILIES[name](tmp_path, steps=1)
    generator = DiffusersGenerator(family.pipe, call=family.call, batch_size=2)
    seen = []
    family.pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["input_ids"])),
        with_kwargs=True,
    )
    prompts = ["a red circle", "a blue square"]
    run(prompts, generator, FakeVerifier(), BestOfN(3))
    run(prompts, generator, FakeVerifier(), BestOfN(5))
    guided = name != "flux"
    # The negative prompt goes with every prompt, one at a time.
    assert sum(seen) == len(prompts) * (2 if guided else 1)


def test_pictures_are_those_of_a_pipeline_that_encodes_itself(tmp_path, monkeypatch):
    family = tiny_families.FAMILIES["sd3"](tmp_path)
    jobs = [Job(Prompt(t, t), Draw(s)) for s, t in enumerate(["a", "a blue square", "a"])]
    once = DiffusersGenerator(family.pipe, call=family.call, batch_size=3).generate(jobs)
    monkeypatch.delattr(Texts, "encoded_once")
    monkeypatch.setattr(Texts, "encoded_once", lambda self, pipe: torch.no_grad(), raising=False)
    itself = DiffusersGenerator(family.pipe, call=family.call, batch_size=3).generate(jobs)
    for one, other in zip(once, itself, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1


class Encoder:
    """Encodes a text as its letters; `made` turns the list of texts into what is returned."""

    def __init__(self, made):
        self.made, self.calls = made, []

    def encode_prompt(self, prompt, scale=None, mask=None, **kwargs):
        self.calls.append(prompt)
        return self.made(prompt)


def letters(prompt):
    return torch.tensor([[float(ord(c)) for c in text] for text in prompt])


def asked(pipe, texts, *prompts, **told):
    with texts.encoded_once(pipe):
        return [pipe.encode_prompt(prompt, **told) for prompt in prompts]


def test_rows_are_put_together_and_what_all_share_is_not():
    pipe = Encoder(lambda prompt: (letters(prompt), torch.zeros(5, 3), None, [1] * len(prompt)))
    ((rows, shared, nothing, items),) = asked(pipe, Texts(), ["ab", "cd", "ab"])
    assert rows.tolist() == [[97, 98], [99, 100], [97, 98]]
    assert shared.shape == (5, 3)
    assert nothing is None
    assert items == [1, 1, 1]
    assert pipe.calls == [["ab"], ["cd"]]
    assert "encode_prompt" not in vars(pipe)


def test_encodings_of_unequal_length_are_left_to_the_pipeline():
    def padded(prompt):
        longest = max(map(len, prompt))
        return letters([text.ljust(longest) for text in prompt])

    pipe = Encoder(padded)
    (found,) = asked(pipe, Texts(), ["a", "bcd"])
    assert found.shape == (2, 3)
    assert pipe.calls[-1] == ["a", "bcd"]


@pytest.mark.parametrize("made", [lambda p: torch.arange(len(p) + 1), lambda p: {"n": len(p)}])
def test_what_is_not_rows_is_left_to_the_pipeline(made):
    pipe = Encoder(made)
    asked(pipe, Texts(), ["a", "b"])
    assert pipe.calls[-1] == ["a", "b"]


def test_other_arguments_tell_encodings_apart_and_tensors_are_not_kept():
    pipe, texts = Encoder(letters), Texts()
    asked(pipe, texts, ["a"], ["a"], scale=1.0)
    asked(pipe, texts, ["a"], scale=2.0, other=[1, "x"])
    assert len(pipe.calls) == 2
    asked(pipe, texts, ["a"], ["a"], mask=torch.ones(1))
    assert len(pipe.calls) == 4
    asked(pipe, texts, "a")
    assert len(pipe.calls) == 5


def test_the_oldest_texts_are_forgotten_when_all_take_too_much_memory(monkeypatch):
    monkeypatch.setattr("tts_verifier.generators.diffusers.prompt_cache._MOST", 3 * 4)
    pipe, texts = Encoder(lambda prompt: (letters(prompt), None, [1])), Texts()
    asked(pipe, texts, ["a"], ["b"], ["c"], ["a"], ["d"], ["a"], ["b"])
    assert pipe.calls == [["a"], ["b"], ["c"], ["d"], ["b"]]


def test_a_thousand_small_texts_are_all_kept():
    pipe, texts = Encoder(letters), Texts()
    asked(pipe, texts, *[[str(1000 + i)] for i in range(1000)] * 2)
    assert len(pipe.calls) == 1000
