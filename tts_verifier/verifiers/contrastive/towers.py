"""CLIP's two towers with their processor: the part that `clip`, `hpsv2` and `aesthetic` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from tts_verifier.errors import CheckpointError
from tts_verifier.loading.files import read_json
from tts_verifier.loading.regular_files import user_path
from tts_verifier.verifiers.contrastive.files import (
    PLAIN_FILES,
    build_module,
    check_layers,
    judge_folder,
    weights_of_folder,
)
from tts_verifier.verifiers.contrastive.texts import Tokens, ids_and_mask

_POSITION_IDS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Buffers that older checkpoints hold and newer models make themselves."""

_MOST_ELONGATED: Final = 64
"""How many times as long as its shorter side a picture is resized."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipProcessor:
    """Makes pictures and prompts into what a CLIP reads."""

    image_processor: Any
    """`CLIPImageProcessorPil` of transformers."""
    tokenizer: Any
    """`CLIPTokenizer` of transformers."""

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns resized, cropped and normalised pictures: float32 (N, 3, side, side)."""
        shown = [without_far_ends(image) for image in images]
        batch = self.image_processor(shown, return_tensors="pt")
        pixels: Tensor = batch["pixel_values"]
        return pixels


def read_clip_config(folder: Path) -> Mapping[str, Any]:
    """Reads the config of a CLIP.

    Raises:
        CheckpointError: there is none, or it is of another model.
    """
    try:
        config = read_json(folder, "config.json")
    except FileNotFoundError:
        raise CheckpointError(f"A CLIP needs a config.json; {folder} has none.") from None
    if config.get("model_type") != "clip":
        raise CheckpointError(
            f"The checkpoint must be a CLIP, {folder / 'config.json'} has the model_type "
            f"{config.get('model_type')!r}."
        )
    return config


def load_clip(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path, dtype: torch.dtype
) -> Any:
    """Builds a `CLIPModel` from its config and its weights, under the names of transformers.

    Raises:
        CheckpointError: they do not fit together.
    """
    from transformers import CLIPConfig, CLIPModel

    check_layers(config, tensors, source)
    try:
        parsed = CLIPConfig.from_dict(dict(config))
    except Exception as error:  # transformers raises errors of its validators
        raise CheckpointError(f"{source}: config.json is not CLIP's: {str(error)[:200]}") from error
    return build_module(
        lambda: CLIPModel(parsed), tensors, source=source, dtype=dtype, ignored=_POSITION_IDS
    )


def without_far_ends(image: Image.Image) -> Image.Image:
    """Returns the middle of a strip, of which the judge's crop takes a small part; else the image.

    Resized as a whole, a strip of one pixel's height would not fit into memory.
    """
    short = min(image.size)
    if max(image.size) <= _MOST_ELONGATED * short:
        return image
    width, height = (min(side, _MOST_ELONGATED * short) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def clip_folder(model: str | Path, revision: str | None = None) -> Path:
    """Finds the folder of a CLIP in the format of transformers.

    Raises:
        CheckpointError: there is no such folder, and the hub has none of that name.
    """
    folder = judge_folder(model, files=(*PLAIN_FILES, "model*.safetensors"), revision=revision)
    if folder == user_path(model) or list(folder.glob("model*.safetensors")):
        return folder
    # Some of OpenAI's repositories have a pickle alone.
    return judge_folder(model, files=(*PLAIN_FILES, "pytorch_model.bin"), revision=revision)


def load_clip_folder(folder: Path, dtype: torch.dtype) -> Any:
    """Loads a `CLIPModel` from a folder; raises as `load_clip` does."""
    return load_clip(read_clip_config(folder), weights_of_folder(folder), folder, dtype)


def has_processor(folder: Path) -> bool:
    """Returns whether a folder has a picture processor, under its older or newer name."""
    return any((folder / f).exists() for f in ("preprocessor_config.json", "processor_config.json"))


def processor_folder(processor: str | Path) -> Path:
    """Finds the folder of a processor; its small files alone come from the hub."""
    return judge_folder(processor, files=PLAIN_FILES)


def load_clip_processor(folder: Path, config: Any) -> ClipProcessor:
    """Loads a processor and compares it with its model.

    Args:
        folder: has preprocessor_config.json and the tokenizer.
        config: `CLIPConfig` of the model.

    Raises:
        CheckpointError: a file is missing, or the processor does not fit the model: it is another
            model's, makes pictures of another size, has tokens that the model does not know, or
            ends a text with another token.
    """
    from transformers import CLIPTokenizer

    _check_class(folder, "preprocessor_config.json", "image_processor_type", "CLIPImageProcessor")
    _check_class(folder, "preprocessor_config.json", "feature_extractor_type", "CLIPFeature")
    _check_class(folder, "tokenizer_config.json", "tokenizer_class", "CLIPTokenizer")
    try:
        image_processor = _pillow_processor().from_pretrained(folder, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises what its parts raise
        raise CheckpointError(
            f"{folder} must have the processor of a CLIP, preprocessor_config.json and a "
            f"tokenizer; transformers says: {str(error)[:200]}"
        ) from error
    _check_fit(folder, image_processor, tokenizer, config)
    return ClipProcessor(image_processor, tokenizer)


def _pillow_processor() -> Any:
    """Returns CLIP's image processor that needs no torchvision."""
    import transformers

    # Its name in the first releases of transformers 5.
    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


def _check_class(folder: Path, file: str, key: str, beginning: str) -> None:
    try:
        name = read_json(folder, file).get(key)
    except FileNotFoundError:
        return  # transformers says which files it needs
    if name is not None and not str(name).startswith(beginning):
        raise CheckpointError(
            f"The processor must be CLIP's, {folder / file} has the {key} {name!r}. Name the "
            "folder of the processor that the model was trained with."
        )


def _check_fit(folder: Path, image_processor: Any, tokenizer: Any, config: Any) -> None:
    side = config.vision_config.image_size
    crop = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    made = (crop.get("height"), crop.get("width"))
    if made != (side, side):
        raise CheckpointError(
            f"The processor does not fit the model: {folder} makes pictures of {made[0]} x "
            f"{made[1]} pixels, and the model reads {side} x {side}. Name the folder of its own "
            "processor."
        )
    text = config.text_config
    largest = max(tokenizer.get_vocab().values())
    # A config that says 2 is of the first release: its model ends a text at the largest token.
    end = largest if text.eos_token_id == 2 else text.eos_token_id
    if largest >= text.vocab_size or tokenizer.eos_token_id != end:
        raise CheckpointError(
            f"The processor does not fit the model: the tokenizer of {folder} has tokens up to "
            f"{largest} and ends a text with {tokenizer.eos_token_id}, while the model knows "
            f"{text.vocab_size} and looks for {end}. Name the folder of its own processor."
        )


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """Returns a CLIP's normalised features of pictures, (N, D)."""
    return normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def text_features(model: Any, tokens: Sequence[Tokens]) -> Tensor:
    """Returns a CLIP's normalised features of prompts, (N, D); equal prompts are read once."""
    unique = list({tuple(t.ids): t for t in tokens}.values())
    place = {tuple(t.ids): i for i, t in enumerate(unique)}
    ids, mask = ids_and_mask(unique, model.text_projection.weight.device)
    output = model.get_text_features(input_ids=ids, attention_mask=mask)
    rows = torch.tensor([place[tuple(t.ids)] for t in tokens], device=ids.device)
    return normalize(output.pooler_output, dim=-1)[rows]
