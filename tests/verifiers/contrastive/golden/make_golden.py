"""Makes golden.npz with the official code; run once, in an environment of its own.

    python3.11 -m venv env
    env/bin/pip install torch==2.13.0 torchvision==0.28.0 transformers==4.44.2 timm==1.0.9 \
        ftfy regex pandas sentencepiece lightning-utilities "setuptools<81"
    for wheel in hpsv2==1.2.0 image-reward==1.5 torchmetrics==1.9.0; do
        env/bin/pip download --no-deps $wheel; done     # and unzip them into wheels/
    env/bin/python make_golden.py wheels

The official packages pin versions that do not install together, so their source is used as it
is in the wheels, and three imports of no effect here are replaced by stubs: fairscale, OpenAI's
clip, and what torchvision for GPUs registers.
"""

import contextlib
import gzip
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
with contextlib.suppress(RuntimeError):
    LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))
import tiny_contrastive as recipe  # noqa: E402

WHEELS = Path(sys.argv[1]).resolve()
FOLDER = Path(tempfile.mkdtemp())
PICTURES = recipe.pictures()


def stub(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def package(name, path):
    """A package without its __init__, whose imports are of other parts."""
    stub(name, __path__=[str(path)])


def fill(module):
    """Gives a module the recipe's weights; returns name -> shape."""
    state = module.state_dict()
    floating = {n: tuple(t.shape) for n, t in state.items() if t.is_floating_point()}
    values = {n: torch.as_tensor(v) for n, v in recipe.weights(floating).items()}
    module.load_state_dict({**state, **values})
    module.eval()
    return floating


def clip_of_transformers():
    """CLIPScore by torchmetrics 1.9.0, and PickScore by the function of its README."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    sys.path.insert(0, str(WHEELS / "torchmetrics"))
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    recipe.write_clip_processor(FOLDER / "clip")
    processor = CLIPProcessor.from_pretrained(FOLDER / "clip")
    model = CLIPModel(CLIPConfig.from_dict(recipe.clip_config()))
    shapes = fill(model)
    pixels = processor(images=PICTURES, return_tensors="pt")["pixel_values"]
    tensors = [torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in PICTURES]
    short = [prompt[:60] for prompt in recipe.PROMPTS]
    clip, _ = _clip_score_update(tensors, short, model, processor)

    def calc_probs(prompt, images):
        # README of yuvalkirstain/PickScore, word for word but for the device.
        image_inputs = processor(
            images=images, padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        text_inputs = processor(
            text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        image_embs = model.get_image_features(**image_inputs)
        image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
        text_embs = model.get_text_features(**text_inputs)
        text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
        scores = model.logit_scale.exp() * (text_embs @ image_embs.T)[0]
        return scores, torch.softmax(scores, dim=-1)

    pick = [calc_probs(prompt, PICTURES) for prompt in recipe.PROMPTS]
    return {
        "clip_shapes": json.dumps(shapes),
        "clip_pixels": pixels,
        "clip": clip.clamp(min=0),
        "clip_cosine": clip / 100,
        "pick": torch.stack([scores for scores, _ in pick]),
        "preference": torch.stack([probs for _, probs in pick]),
    }


def tiny_open_clip(*, quick_gelu):
    """A tiny CLIP of the open_clip that hpsv2 brings along."""
    from open_clip.model import CLIP

    vision = {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": len(recipe.clip_vocabulary()), "width": 32}
    text |= {"heads": 2, "layers": 2}
    model = CLIP(16, vision, text, quick_gelu=quick_gelu, output_dict=True)
    return model, fill(model)


def hpsv2():
    """The steps of hpsv2/img_score.py, on the CPU and in float32."""
    source = WHEELS / "hpsv2" / "hpsv2" / "src"
    # The wheel lacks this file, and reads it when it is imported: a tiny one takes its place.
    merges = "\n".join(" ".join(pair) for pair in recipe.MERGES)
    vocabulary = source / "open_clip" / "bpe_simple_vocab_16e6.txt.gz"
    vocabulary.write_bytes(gzip.compress(f"#version: 0.2\n{merges}".encode()))
    sys.path.insert(0, str(source))
    import open_clip.tokenizer as tokenizer
    import open_clip.transform as transform

    model, shapes = tiny_open_clip(quick_gelu=False)
    preprocess = transform.image_transform(28, is_train=False, resize_longest_max=True)

    def score(picture, prompt):
        image = preprocess(picture).unsqueeze(0)
        outputs = model(image, tokenizer.tokenize([prompt]))
        image_features, text_features = outputs["image_features"], outputs["text_features"]
        return torch.diagonal(image_features @ text_features.T)[0]

    def rows():
        # Where the longer side fits already the official code does not pad, and then fails.
        return [i for i, p in enumerate(PICTURES) if max(p.size) != 28 or p.size == (28, 28)]

    def scores():
        return torch.stack([score(PICTURES[i], recipe.PROMPTS[i]) for i in rows()])

    found = {
        "hpsv2_shapes": json.dumps(shapes),
        "hpsv2_rows": np.array(rows()),
        "hpsv2_ids": tokenizer.tokenize(recipe.PROMPTS),
        "hpsv2_pixels": torch.stack([preprocess(PICTURES[i]) for i in rows()]),
        "hpsv2": scores(),
    }
    # As torchvision before 0.17 resized a tensor.
    resize = transform.F.resize
    transform.F.resize = lambda *a: resize(*a, antialias=False)
    found["hpsv2_without_antialias"] = scores()
    transform.F.resize = resize
    return found


def imagereward():
    """ImageReward.score, with tiny towers in place of ViT-L and BERT-base."""
    import transformers

    package("ImageReward", WHEELS / "image_reward" / "ImageReward")
    package("ImageReward.models", WHEELS / "image_reward" / "ImageReward" / "models")
    stub("fairscale")
    stub("fairscale.nn")
    stub("fairscale.nn.checkpoint")
    stub("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=lambda m: m)
    stub("clip")
    from ImageReward.models.BLIP import blip, blip_pretrain, vit

    size = recipe.write_bert_tokenizer(FOLDER / "bert") + 2
    original = transformers.BertTokenizer.from_pretrained
    blip.BertTokenizer.from_pretrained = lambda name: original(FOLDER / "bert")
    tower = {"img_size": 32, "patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2}
    blip_pretrain.create_vit = lambda *a: (vit.VisionTransformer(**tower), 128)
    config = {"architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1}
    config |= {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 128}
    config |= {"initializer_range": 0.02, "intermediate_size": 256, "layer_norm_eps": 1e-12}
    config |= {"max_position_embeddings": 64, "model_type": "bert", "num_attention_heads": 2}
    config |= {"num_hidden_layers": 2, "pad_token_id": 0, "add_type_embeddings": False}
    config |= {"vocab_size": size, "encoder_width": 768, "add_cross_attention": True}
    (FOLDER / "med_config.json").write_text(json.dumps(config))

    from ImageReward import ImageReward as official

    model = official.ImageReward(FOLDER / "med_config.json")
    model.preprocess, model.mlp = official._transform(32), official.MLP(128)
    shapes = fill(model)
    return {
        "imagereward_shapes": json.dumps(shapes),
        "imagereward_pixels": torch.stack([model.preprocess(p) for p in PICTURES]),
        "imagereward": np.array(
            [model.score(t, p) for t, p in zip(recipe.PROMPTS, PICTURES, strict=True)]
        ),
    }


def aesthetic():
    """AestheticScore.score, on OpenAI's architecture as open_clip has it."""
    from ImageReward import ImageReward as official
    from ImageReward.models.AestheticScore import MLP
    from torch.nn.functional import normalize

    model, shapes = tiny_open_clip(quick_gelu=True)
    head = MLP(16)
    head_shapes = fill(head)
    preprocess = official._transform(28)
    images = torch.stack([preprocess(p) for p in PICTURES])
    return {
        "aesthetic_shapes": json.dumps(shapes),
        "aesthetic_head_shapes": json.dumps(head_shapes),
        "aesthetic": head(normalize(model.encode_image(images)).float())[:, 0],
    }


def main():
    with torch.no_grad():
        parts = [make() for make in (clip_of_transformers, hpsv2, imagereward, aesthetic)]
    merged = {name: np.asarray(value) for part in parts for name, value in part.items()}
    np.savez_compressed(HERE / "golden.npz", **merged)
    for name, value in merged.items():
        print(name, value.shape, value if value.size <= 8 and value.dtype.kind == "f" else "")


if __name__ == "__main__":
    main()
