"""The call of a wrapped pipeline: names, lists, images, callbacks, mistakes."""

import inspect

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from tiny_pipelines import CALL, same, sd15

from tts_verifier import BestOfN, wrap
from tts_verifier.errors import InputError
from tts_verifier.testing import FakeVerifier
from tts_verifier.verified.call import Call


def test_arguments_may_have_no_name(pipe, verified):
    names = list(inspect.signature(type(pipe).__call__).parameters)[1:5]
    assert names == ["prompt", "prompt_2", "prompt_3", "height"]
    assert verified("a", None, None, 8, 8, seed=1, **CALL).images[0].size == (8, 8)


def test_callbacks_are_called_at_every_step(verified):
    seen = []

    def note(pipe, step, timestep, values):
        seen.append(step)
        return values

    verified("a", seed=1, callback_on_step_end=note, **CALL)
    assert seen == [0, 1]


def test_an_error_of_a_callback_ends_the_call(verified):
    steps, error = [], KeyError("cancelled")

    def cancel(pipe, step, timestep, values):
        steps.append(step)
        raise error

    with pytest.raises(KeyError, match="cancelled") as raised:
        verified("a", seed=1, callback_on_step_end=cancel, **CALL)
    assert raised.value is error
    assert steps == [0]


def test_even_an_error_that_looks_like_full_memory_ends_the_call(verified):
    steps = []

    def fail(pipe, step, timestep, values):
        steps.append(step)
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        verified("a", seed=1, callback_on_step_end=fail, **CALL)
    assert steps == [0]


def test_a_list_of_images_has_one_for_each_prompt(tmp_path):
    pipe = StableDiffusionImg2ImgPipeline(**sd15(tmp_path).components)
    pipe.set_progress_bar_config(disable=True)
    images = [Image.new("RGB", (16, 16), color) for color in ("black", "white")]
    call = {"num_inference_steps": 2, "strength": 0.5, "seed": 1}
    verified = wrap(pipe, FakeVerifier(), strategy=BestOfN(2), batch_size=2)
    out = verified(["a", "b"], image=images, **call)
    for place, text in enumerate(["a", "b"]):
        alone = verified(text, image=images[place], **call)
        assert same(out.images[place], alone.images[0])
    batch = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    assert same(verified(["a", "b"], image=batch, **call).images[1], out.images[1])
    assert same(verified(["a", "b"], image=list(batch), **call).images[1], out.images[1])
    with pytest.raises(InputError, match="image must have one item for each of 3 prompts, got 2"):
        verified(["a", "b", "c"], image=images, **call)
    with pytest.raises(InputError, match="image must be one image for one prompt, got 2"):
        verified("a", image=images, **call)


class MultiControlNetModel:
    """Stands for several ControlNets."""


class References:
    """A pipeline whose `image` is a list of references."""

    def __call__(self, prompt, image=None):
        pass


class Controlled(References):
    controlnet = MultiControlNetModel()


@pytest.mark.parametrize(
    ("pipe", "value", "split"),
    [
        (References(), ["x", "y"], False),
        (Controlled(), ["pose", "depth"], False),
        (Controlled(), [["pose", "depth"], ["pose", "depth"]], True),
    ],
)
def test_lists_of_images_that_prompts_share_stay_whole(pipe, value, split):
    call = Call.from_arguments(pipe, (), {"prompt": ["a", "b"], "image": value, "seed": 1})
    assert ("image" in call.requests[0].arguments) is split
    assert ("image" in call.shared_arguments) is not split


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a", "guidence_scale": 3}, "does not take guidence_scale. Did you mean"),
        ({"prompt": None}, "prompt must be a text"),
        ({"prompt": "a", "latents": 1}, "The search makes latents itself"),
        ({"prompt": "a", "output_type": "latent"}, "output_type must be one of pil, np, pt"),
        ({"prompt": "a", "num_images_per_prompt": -1}, "num_images_per_prompt must be"),
        ({"prompt": "a", "seed": 1, "generator": 1}, "seed and generator"),
        ({"prompt": "a", "seed": "1"}, "seed must be an integer"),
        ({"prompt": "a", "generator": 1}, "generator must be a torch.Generator"),
        (
            {"prompt": ["a", "b"], "negative_prompt": ["c"]},
            "negative_prompt must have one item for each of 2 prompts",
        ),
    ],
)
def test_mistakes_are_refused(verified, arguments, message):
    with pytest.raises((InputError, TypeError), match=message):
        verified(**arguments)


def test_too_many_arguments_and_doubled_ones_are_refused(verified):
    with pytest.raises(InputError, match="takes at most"):
        verified(*["a"] * 99)
    with pytest.raises(InputError, match="prompt must be passed once"):
        verified("a", prompt="b")
