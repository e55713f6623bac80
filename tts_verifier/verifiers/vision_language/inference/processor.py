"""Processors of image-text-to-text models, loaded without torchvision.

A processor of transformers turns messages and images into tensors. Those of many families handle
videos too, and their video processors need torchvision, which this package does without. Images
alone do not need it: such a processor is put together here without its video part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoProcessor
from transformers.models.auto import processing_auto
from transformers.processing_utils import ProcessorMixin

from tts_verifier.errors import CheckpointError


def load_processor(folder: Path, model_type: str) -> Any:
    """Loads the processor of a checkpoint folder; it pads on the left, as batches of prompts need.

    Args:
        folder: has tokenizer, image processor and chat template.
        model_type: of the folder's config, such as "qwen2_5_vl".

    Raises:
        CheckpointError: a part is missing, or this transformers has no processor for the model.
    """
    try:
        processor = _whole(folder) or _without_video(folder, model_type)
    except (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder} must hold the tokenizer and the image processor of a {model_type}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    # Older checkpoints keep it with the tokenizer, newer ones in a file of its own.
    if not processor.chat_template:
        processor.chat_template = processor.tokenizer.chat_template
    if not processor.chat_template:
        raise CheckpointError(
            f"{folder} must hold a chat template, which puts images and questions together. Take "
            "an instruction-tuned checkpoint, or add its chat_template.jinja."
        )
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def special_names(processor: Any) -> tuple[str, ...]:
    """Returns the names of all special tokens, longest first."""
    tokenizer = processor.tokenizer
    added = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    return tuple(sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True))


def as_plain_text(text: str, names: tuple[str, ...]) -> str:
    """Returns a prompt in which names of special tokens are only text.

    A space after the first letter keeps the tokenizer from reading, say, an image into a prompt.

    Args:
        text: the prompt.
        names: from `special_names`.
    """
    for name in names:
        text = text.replace(name, f"{name[:1]} {name[1:]}")
    return text


def _whole(folder: Path) -> Any:
    """Returns the processor as transformers loads it; None if a part of it cannot be loaded."""
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (ImportError, AttributeError):
        return None
    # Where it finds no processor, it returns a tokenizer.
    return processor if isinstance(processor, ProcessorMixin) else None


def _class_of(model_type: str) -> Any:
    names: Any = processing_auto
    return names.processor_class_from_name(names.PROCESSOR_MAPPING_NAMES[model_type])


def _without_video(folder: Path, model_type: str) -> Any:
    """Loads a processor whose video part cannot be loaded."""
    cls = _class_of(model_type)

    class Pictures(cls):  # type: ignore[misc, valid-type]
        """The processor of a family, for images only."""

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

    return Pictures.from_pretrained(folder)
