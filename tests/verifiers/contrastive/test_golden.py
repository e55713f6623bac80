"""Every judge gives the numbers of its official code, from the official names of weights on."""

import json

import numpy as np
import pytest
import tiny_contrastive
import torch
from safetensors.torch import save_file

from tts_verifier import Verifier
from tts_verifier.verifiers.contrastive.aesthetic import Aesthetic
from tts_verifier.verifiers.contrastive.clip import ClipScore, PickScore
from tts_verifier.verifiers.contrastive.hpsv2 import HPSv2, resize_and_pad
from tts_verifier.verifiers.contrastive.imagereward import ImageReward, resize_and_crop
from tts_verifier.verifiers.contrastive.open_clip import transformers_names

# One prompt of PROMPTS is too long on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:The prompt has")
PICTURES = tiny_contrastive.pictures()
PROMPTS = tiny_contrastive.PROMPTS
TOLERANCE = 1e-4


def scores(judge: Verifier, name: str, prompts: list[str] = PROMPTS) -> list[float]:
    return [verdict.scores[name] for verdict in judge.verify(PICTURES, prompts)]


def test_clip_is_torchmetrics_clip_score(clip_folder, golden):
    short = [prompt[:60] for prompt in PROMPTS]
    clip = ClipScore(clip_folder, batch_size=3)
    np.testing.assert_allclose(clip.processor.pixels(PICTURES), golden["clip_pixels"], atol=1e-6)
    np.testing.assert_allclose(scores(clip, "clip", short), golden["clip"], atol=TOLERANCE)
    cosine = ClipScore(clip_folder, scale=1.0, clamp=False)
    got = scores(cosine, "clip", short)
    np.testing.assert_allclose(got, golden["clip_cosine"], atol=TOLERANCE)


def test_pickscore_and_its_softmax_are_those_of_its_readme(clip_folder, golden):
    pick = PickScore(clip_folder, softmax=True)
    for prompt, logits, probs in zip(PROMPTS, golden["pick"], golden["preference"], strict=True):
        same = [prompt] * len(PICTURES)
        np.testing.assert_allclose(scores(pick, "pick", same), logits, atol=TOLERANCE)
        np.testing.assert_allclose(scores(pick, "preference", same), probs, atol=TOLERANCE)


def test_a_prefix_and_a_scale_make_the_score_of_hessel(clip_folder):
    own = ClipScore(clip_folder, scale=2.5, prefix="A photo depicts ")
    prefixed = [f"A photo depicts {prompt}" for prompt in PROMPTS]
    expected = np.array(scores(ClipScore(clip_folder), "clip", prefixed)) / 40
    np.testing.assert_allclose(scores(own, "clip"), expected, atol=TOLERANCE)


@pytest.mark.parametrize(("antialias", "name"), [(True, ""), (False, "_without_antialias")])
def test_hpsv2_is_the_official_one(hpsv2_files, golden, antialias, name):
    model, base = hpsv2_files
    judge = HPSv2(model, base=base, antialias=antialias)
    rows = golden["hpsv2_rows"]
    got = np.array(scores(judge, "hpsv2"))
    np.testing.assert_allclose(got[rows], golden[f"hpsv2{name}"], atol=TOLERANCE)
    # Where the official code fails, because the longer side fits already.
    assert np.isfinite(got).all()


def test_hpsv2_pads_pictures_as_the_official_transform(golden):
    pixels = [resize_and_pad(PICTURES[i], tiny_contrastive.SIDE) for i in golden["hpsv2_rows"]]
    np.testing.assert_allclose(torch.stack(pixels), golden["hpsv2_pixels"], atol=1e-6)


def test_hpsv2_reads_a_clip_model_of_transformers_too(hpsv2_files, golden, tmp_path):
    model, base = hpsv2_files
    expected = scores(HPSv2(model, base=base), "hpsv2")
    converted = tmp_path / "converted"
    converted.mkdir()
    config = tiny_contrastive.clip_config(hidden_act="gelu")
    (converted / "config.json").write_text(json.dumps(config))
    tensors = transformers_names(golden.tensors("hpsv2"))
    torch.save(tensors, converted / "pytorch_model.bin")
    assert scores(HPSv2(converted, base=base), "hpsv2") == expected
    safe = tmp_path / "HPS_v2.1_compressed.safetensors"
    save_file(golden.tensors("hpsv2"), safe)
    model.unlink()
    assert scores(HPSv2(tmp_path, base=base), "hpsv2") == expected


def test_imagereward_is_the_official_one(imagereward_files, golden):
    model, tokenizer = imagereward_files
    judge = ImageReward(model, tokenizer=tokenizer)
    np.testing.assert_allclose(scores(judge, "imagereward"), golden["imagereward"], atol=TOLERANCE)
    pixels = [resize_and_crop(picture, tiny_contrastive.BLIP_SIDE) for picture in PICTURES]
    np.testing.assert_allclose(torch.stack(pixels), golden["imagereward_pixels"], atol=1e-6)


def test_aesthetic_is_the_official_head_on_openais_clip(aesthetic_files, golden):
    model, head = aesthetic_files
    judge = Aesthetic(model, head=head)
    np.testing.assert_allclose(scores(judge, "aesthetic"), golden["aesthetic"], atol=TOLERANCE)
