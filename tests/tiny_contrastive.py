"""Weights, pictures, prompts and tokenizers of the golden numbers: the same for both sides.

Numpy and Pillow alone at its top, so that old and new environments can import it.
"""

import hashlib
import json

import numpy as np
from PIL import Image

SIDE = 28
"""Of the tiny CLIPs, whose patches are 14."""
BLIP_SIDE = 32
"""Of the tiny BLIP, whose patches are 16."""
SIZES = [(28, 28), (61, 43), (45, 120), (301, 97), (20, 17), (59, 59), (28, 19), (300, 9)]
"""Widths and heights: odd differences, enlarged ones, a strip, one whose longer side fits."""
PROMPTS = [
    "a red circle",
    "the  Red\ntable, the red chair",
    "Café ÉCLAIR, 3 of them!",
    "a very long prompt: " + "the red table and the other red chair " * 12,
    "x",
    "the the the",
    "don't look",
    "A PHOTO OF 12 rédacteurs",
]
"""One for each picture."""
MERGES = [("t", "h"), ("th", "e</w>"), ("r", "e"), ("re", "d</w>"), ("o", "f</w>")]
WORDS = ["the", "red", "table", "chair", "of", "circle", "look", "very", "long", "and", "other"]


def weight(name, shape):
    """Returns the float32 values of a tensor, a function of its official name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape))
    if name.endswith("logit_scale"):
        return np.float32(3.0)
    if len(shape) == 1 and name.endswith("weight"):
        values = 1 + 0.2 * values
    elif len(shape) == 1:
        values = 0.2 * values
    elif "embed" not in name:
        values *= 1.5 / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def weights(shapes):
    """Returns name -> values for name -> shape."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def pictures():
    """Returns RGB pictures of SIZES: waves of several lengths, with noise."""
    made = []
    for i, (width, height) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / (2 + c + i) + c) + np.cos(y / (3 + c) + i) for c in range(3)]
        noise = np.random.Generator(np.random.PCG64(i)).normal(0, 20, (height, width, 3))
        values = 128 + 50 * np.stack(waves, axis=2) + noise
        made.append(Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)))
    return made


def byte_letters():
    """Returns CLIP's letters for the 256 bytes, in the order of its vocabulary."""
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(c) for c in codes]
    return letters + [chr(256 + n) for n in range(256 - len(codes))]


def clip_vocabulary():
    """Returns token -> id of a CLIP tokenizer with the merges above."""
    letters = byte_letters()
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += ["".join(pair) for pair in MERGES] + ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def write_clip_processor(folder, side=SIDE):
    """Writes the tokenizer and the picture processor of a tiny CLIP, in older format."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary()))
    merges = "\n".join(" ".join(pair) for pair in MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    processor = {
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": side,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def clip_config(**changes):
    """Returns the config of a tiny CLIP, as in config.json of a released one."""
    vocabulary = len(clip_vocabulary())
    tower = {"intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    tower |= {"hidden_size": 32, "projection_dim": 16, "hidden_act": "quick_gelu"} | changes
    text = {
        "vocab_size": vocabulary,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
    }
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    vision = {"image_size": SIDE, "patch_size": 14}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 16,
        "logit_scale_init_value": 2.6592,
        "text_config": tower | text | ends,
        "vision_config": tower | vision,
    }


def write_clip(folder, tensors, **config):
    """Writes the folder of a tiny CLIPModel with its processor, from torch tensors by name."""
    from safetensors.torch import save_file

    write_clip_processor(folder)
    (folder / "config.json").write_text(json.dumps(clip_config(**config)))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


def write_bert_tokenizer(folder):
    """Writes a tiny WordPiece vocabulary; returns its size."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [f"##{letter}" for letter in letters] + WORDS
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)
