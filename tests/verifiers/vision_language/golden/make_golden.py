"""Makes golden.npz: HPSv3 and VQAScore by the official code, on random weights, in float32.

Run it in environments of its own, once for each transformers that the official packages pin, with
the wheels of hpsv3 1.0.0 and t2v_metrics 3.0 unpacked:

    pip install torch==2.13.0 transformers==4.45.2 pillow safetensors qwen-vl-utils==0.0.8
    python make_golden.py hpsv3 FOLDER HPSV3_WHEEL golden.npz
    pip install transformers==4.49.0
    python make_golden.py vqascore FOLDER T2V_METRICS_WHEEL golden.npz

FOLDER has the folders qwen2_vl and qwen2_5_vl, made by `tiny_judges.save_judge` in the package's
own environment. Weights come from `weights.fill`, by official names.

The classes are executed as they are in the wheels. Only what surrounds them is left out: imports of
training libraries, the loading of weights, and CUDA's autocast.
"""

import ast
import contextlib
import importlib.util
import json
import math
import sys
import types
import typing
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from weights import IMAGES, PROMPTS, fill, picture

HINTS = {name: getattr(typing, name) for name in ("Any", "Dict", "List", "Optional", "Union")}


def nodes(file, *names):
    """The source of some classes, functions and constants of a file."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        name = getattr(node, "name", None) or getattr(node, "targets", [ast.Name("")])[0].id
        if name in names:
            found[name] = node
    assert sorted(found) == sorted(names), found
    return ast.Module([found[name] for name in names], [])


def run(module, namespace):
    exec(compile(module, "official", "exec"), namespace)
    return namespace


def processor(folder, name):
    """The processor of this transformers, on the saved tokenizer and sizes."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    tokens = transformers.Qwen2TokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokens.chat_template = (folder / "chat_template.jinja").read_text()
    # The official code resizes pictures itself, within these limits.
    images = Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28)
    return getattr(transformers, name)(images, tokens, chat_template=tokens.chat_template)


def config(folder, cls):
    """The saved config as this transformers writes it."""
    new = json.loads((folder / "config.json").read_text())
    text = new.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    text["rope_theta"] = rope["rope_theta"]
    for flat in (text, new["vision_config"]):
        flat.pop("model_type", None)
        flat.pop("dtype", None)
    ids = {name: new[name] for name in new if name.endswith("_token_id")}
    return cls(**{**text, **ids, "tie_word_embeddings": False}, vision_config=new["vision_config"])


def image_fetcher(file):
    """`fetch_image` of qwen_vl_utils, or of a copy of it; the file itself imports torchvision."""
    names = ("round_by_factor", "ceil_by_factor", "floor_by_factor", "smart_resize", "fetch_image")
    module = nodes(file, *names)
    module.body.insert(0, ast.parse("from __future__ import annotations").body[0])
    limits = {"MIN_PIXELS": 4 * 28 * 28, "MAX_PIXELS": 16384 * 28 * 28, "MAX_RATIO": 200}
    space = {"Image": Image, "math": math, "torch": torch, "IMAGE_FACTOR": 28, **limits}
    return run(ast.fix_missing_locations(module), space)["fetch_image"]


def hpsv3(folder, wheel):
    space = {
        **HINTS,
        "torch": torch,
        "nn": torch.nn,
        "Qwen2VLForConditionalGeneration": transformers.Qwen2VLForConditionalGeneration,
    }
    run(nodes(wheel / "hpsv3/model/qwen2vl_trainer.py", "Qwen2VLRewardModelBT"), space)
    # Its forward asks CUDA for float32, which a CPU computes in anyway.
    torch.autocast = lambda **_: contextlib.nullcontext()
    text = {}
    run(
        nodes(
            wheel / "hpsv3/dataset/data_collator_qwen.py",
            "INSTRUCTION", "prompt_with_special_token", "prompt_without_special_token",
        ),
        text,
    )  # fmt: skip
    fetch_image = image_fetcher(wheel / "hpsv3/dataset/utils.py")
    chosen = processor(folder, "Qwen2VLProcessor")
    chosen.tokenizer.padding_side = "right"
    chosen.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    ids = chosen.tokenizer.convert_tokens_to_ids(["<|Reward|>"])
    model = space["Qwen2VLRewardModelBT"](
        config(folder, transformers.Qwen2VLConfig),
        output_dim=2,
        reward_token="special",
        special_token_ids=ids,
        rm_head_type="ranknet",
    )
    model.resize_token_embeddings(len(chosen.tokenizer))
    fill(model)
    model.config.pad_token_id = chosen.tokenizer.pad_token_id
    model.eval()
    messages = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": picture(*image), "min_pixels": 200704,
                     "max_pixels": 200704},
                    {"type": "text", "text": text["INSTRUCTION"].format(text_prompt=prompt)
                     + text["prompt_with_special_token"]},
                ],
            }
        ]
        for image, prompt in zip(IMAGES, PROMPTS, strict=True)
    ]  # fmt: skip
    pictures = [fetch_image(m[0]["content"][0]) for m in messages]
    batch = chosen(
        text=chosen.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        images=pictures,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(return_dict=True, **batch)["logits"]
    return {"hpsv3": logits.numpy(), "hpsv3_sizes": np.array([p.size for p in pictures])}


def vqascore(folder, wheel):
    utils = Path(importlib.util.find_spec("qwen_vl_utils").origin).parent / "vision_process.py"
    fetch_image = image_fetcher(utils)

    def process_vision_info(messages):
        parts = [part for message in messages for part in message["content"]]
        return [fetch_image(part) for part in parts if part["type"] == "image"], None

    space = {
        **HINTS,
        "torch": torch,
        "np": np,
        "Image": Image,
        "VQAScoreModel": object,
        "process_vision_info": process_vision_info,
    }
    run(nodes(wheel / "t2v_metrics/models/vqascore_models/qwen2vl_model.py", "Qwen2VLModel"), space)
    made = config(folder, transformers.Qwen2_5_VLConfig)
    model = transformers.Qwen2_5_VLForConditionalGeneration(made).eval()
    fill(model)
    # As that of the released 3 B and 7 B.
    model.generation_config.repetition_penalty = 1.05
    official = space["Qwen2VLModel"].__new__(space["Qwen2VLModel"])
    official.model, official.device = model, torch.device("cpu")
    official.processor = processor(folder, "Qwen2_5_VLProcessor")
    official.load_images = lambda paths, fps: [{"type": "image", "image": p} for p in paths]
    scores = official.forward([picture(*image) for image in IMAGES], list(PROMPTS))
    return {"vqascore": scores.numpy()}


if __name__ == "__main__":
    what, folder, wheel, output = sys.argv[1:]
    sys.modules.setdefault("decord", types.ModuleType("decord"))
    family = {"hpsv3": "qwen2_vl", "vqascore": "qwen2_5_vl"}[what]
    values = {"hpsv3": hpsv3, "vqascore": vqascore}[what](Path(folder) / family, Path(wheel))
    old = dict(np.load(output)) if Path(output).exists() else {}
    np.savez(output, **old, **values)
    print(transformers.__version__, {k: v.tolist() for k, v in values.items()})
