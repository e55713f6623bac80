"""Each prompt is encoded once."""

from contextlib import nullcontext

import numpy as np
import pytest
import tiny_families
import torch

from tts_verifier import BestOfN, run
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.prompt_cache import PromptCache
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Draw, Job, Prompt


@pytest.mark.parametrize("name", ["sd3", "flux", "z_image"])
def test_each_prompt_is_encoded_once_for_all_candidates_and_rounds(name, tmp_path):
    family = tiny_families.FAMILIES[name](tmp_path, steps=1)
    generator = DiffusersGenerator(family.pipe, call=family.call, batch_size=2)
    rows = []
    family.pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])),
        with_kwargs=True,
    )
    prompts = ["a red circle", "a blue square"]
    run(prompts, generator, FakeVerifier(), BestOfN(3))
    run(prompts, generator, FakeVerifier(), BestOfN(5))
    guided = name != "flux"
    # The negative prompt goes with every prompt, one at a time.
    assert sum(rows) == len(prompts) * (2 if guided else 1)


class NoCache(PromptCache):
    """Lets the pipeline encode every batch itself."""

    def applied_to(self, pipe):
        return nullcontext()


def test_images_are_those_of_a_pipeline_that_encodes_itself(tmp_path):
    family = tiny_families.FAMILIES["sd3"](tmp_path)
    jobs = [Job(Prompt(t, t), Draw(s)) for s, t in enumerate(["a", "a blue square", "a"])]
    generator = DiffusersGenerator(family.pipe, call=family.call, batch_size=3)
    cached = generator.generate(jobs)
    uncached = generator.with_call(family.call, prompt_cache=NoCache()).generate(jobs)
    for one, other in zip(cached, uncached, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1


class Encoder:
    """A pipeline whose encoding of a list of prompts is what `encode` returns for it."""

    def __init__(self, encode):
        self.encode, self.calls = encode, []

    def encode_prompt(self, prompt, scale=None, mask=None, **kwargs):
        self.calls.append(prompt)
        return self.encode(prompt)


def letters(prompt):
    return torch.tensor([[float(ord(c)) for c in text] for text in prompt])


def encodings(pipe, cache, *prompts, **kwargs):
    with cache.applied_to(pipe):
        return [pipe.encode_prompt(prompt, **kwargs) for prompt in prompts]


def test_rows_are_concatenated_and_shared_tensors_are_not():
    pipe = Encoder(lambda prompt: (letters(prompt), torch.zeros(5, 3), None, [1] * len(prompt)))
    ((rows, shared, nothing, items),) = encodings(pipe, PromptCache(), ["ab", "cd", "ab"])
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
    (batch,) = encodings(pipe, PromptCache(), ["a", "bcd"])
    assert batch.shape == (2, 3)
    assert pipe.calls[-1] == ["a", "bcd"]


@pytest.mark.parametrize("encode", [lambda p: torch.arange(len(p) + 1), lambda p: {"n": len(p)}])
def test_encodings_that_are_no_rows_are_left_to_the_pipeline(encode):
    pipe = Encoder(encode)
    encodings(pipe, PromptCache(), ["a", "b"])
    assert pipe.calls[-1] == ["a", "b"]


def test_other_arguments_are_part_of_the_key_and_tensors_prevent_caching():
    pipe, cache = Encoder(letters), PromptCache()
    encodings(pipe, cache, ["a"], ["a"], scale=1.0)
    encodings(pipe, cache, ["a"], scale=2.0, other=[1, "x"])
    assert len(pipe.calls) == 2
    encodings(pipe, cache, ["a"], ["a"], mask=torch.ones(1))
    assert len(pipe.calls) == 4
    encodings(pipe, cache, "a")
    assert len(pipe.calls) == 5


def test_the_oldest_prompts_are_dropped_when_the_cache_is_full():
    pipe = Encoder(lambda prompt: (letters(prompt), None, [1]))
    cache = PromptCache(max_bytes=3 * letters(["a"]).nbytes)
    encodings(pipe, cache, ["a"], ["b"], ["c"], ["a"], ["d"], ["a"], ["b"])
    assert pipe.calls == [["a"], ["b"], ["c"], ["d"], ["b"]]


def test_a_thousand_small_prompts_all_stay():
    pipe, cache = Encoder(letters), PromptCache()
    encodings(pipe, cache, *[[str(1000 + i)] for i in range(1000)] * 2)
    assert len(pipe.calls) == 1000
