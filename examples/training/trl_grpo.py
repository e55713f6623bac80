"""The twelve rewards in TRL's GRPOTrainer, on a stock Qwen2.5-VL.

    pip install trl
    python examples/training/trl_grpo.py --steps 3

Everything is made here: a random network of a few thousand weights, its tokenizer, and pictures of
the miniature RichHF-18K. It shows how the rewards are wired, not that anything is learned. For a
real network replace `tiny_network` by `AutoModelForImageTextToText.from_pretrained` and
`AutoProcessor.from_pretrained`, and the pictures by a folder of RichHF-18K.

The rewards need the maps that belong to a reply. `Rollout` stands for a model with heatmaps: it
writes the replies and reads a map off the states that wrote them. What it adds to its result
reaches the rewards as columns. For a model without maps leave it out and give the data set columns
`predicted_misalignment` and `predicted_artifact` of None, which count as empty maps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer

from tts_verifier.evaluation import RatedPicture, resized
from tts_verifier.images import as_image
from tts_verifier.training.grpo.rewards import REWARDS
from tts_verifier.training.richhf.dataset import read_split
from tts_verifier.training.richhf.miniature import make_miniature_richhf

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
PICTURE, VIDEO = "<|image_pad|>", "<|video_pad|>"
FRAME = ("<|vision_start|>", "<|vision_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class PictureProcessor(ProcessorMixin):
    """Qwen2.5-VL's processor without its video part, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """Puts as many tokens as a picture has patches where the text names a picture."""
        tensors = options.pop("return_tensors", None)
        options.pop("return_mm_token_type_ids", None)
        texts, pictures = [text] if isinstance(text, str) else list(text), {}
        if images is not None:
            pictures = self.image_processor(images=images, return_tensors="pt")
            merged = self.image_processor.merge_size**2
            tokens = iter((pictures["image_grid_thw"].prod(1) // merged).tolist())
            texts = [
                "".join(
                    part + (PICTURE * next(tokens) if rest else "")
                    for rest, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True)
                )
                for parts in (t.split(PICTURE) for t in texts)
            ]
        found = self.tokenizer(texts, **options)
        picture = self.tokenizer.convert_tokens_to_ids(PICTURE)
        kinds = [[int(i == picture) for i in ids] for ids in found["input_ids"]]
        found["mm_token_type_ids"] = kinds
        found.update(pictures)
        return found.convert_to_tensors(tensors) if tensors else found


class Rollout:
    """Writes replies, and reads two maps of 4 x 4 pixels off their states.

    The two projections are random; a real model has trained heads.
    """

    def __init__(self, width: int) -> None:
        self.heads = {kind: torch.randn(width, 16) for kind in ("misalignment", "artifact")}

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """Returns what TRL needs of each reply, and the columns of the rewards."""
        inputs = trainer.processing_class.apply_chat_template(
            prompts,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        ).to(trainer.accelerator.device)
        model = trainer.accelerator.unwrap_model(trainer.model)
        with torch.no_grad():
            written = model.generate(
                **inputs,
                max_new_tokens=trainer.args.max_completion_length,
                do_sample=True,
                return_dict_in_generate=True,
                output_hidden_states=True,
            )
        start = inputs["input_ids"].shape[1]
        replies = [self._until_end(ids, trainer) for ids in written.sequences[:, start:].tolist()]
        # The state that wrote the last token stands for that of a heatmap token.
        states = written.hidden_states[-1][-1][:, -1].float().cpu()
        masks = inputs["attention_mask"].bool()
        return {
            "prompt_ids": [
                ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], masks, strict=True)
            ],
            "completion_ids": replies,
            "logprobs": None,
            **{
                f"predicted_{kind}": list((states @ head / 8 - 3).sigmoid().view(-1, 4, 4))
                for kind, head in self.heads.items()
            },
        }

    @staticmethod
    def _until_end(ids: list[int], trainer: GRPOTrainer) -> list[int]:
        ends = [at for at, token in enumerate(ids) if token in trainer.eos_token_ids]
        return ids[: ends[0] + 1] if ends else ids


def tiny_network() -> tuple[Qwen2_5_VLForConditionalGeneration, PictureProcessor]:
    """Returns a random network of two layers with a tokenizer of bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(letters)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    special = [PAD, START, END, *FRAME, PICTURE, VIDEO]
    base.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, eos_token=END, pad_token=PAD, padding_side="left"
    )
    ids = {token: base.token_to_id(token) for token in special}
    text = {
        "vocab_size": base.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default"},
        "bos_token_id": ids[PAD],
        "eos_token_id": ids[END],
        "pad_token_id": ids[PAD],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[PICTURE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[FRAME[0]],
        vision_end_token_id=ids[FRAME[1]],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    processor = PictureProcessor(
        Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56), tokenizer, TEMPLATE
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def data_set(pictures: Sequence[RatedPicture]) -> Dataset:
    """Returns rated pictures with the columns that the rewards need."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Rate this picture of {picture.prompt}."}],
                "image": as_image(picture.picture),
                "scores": dict(picture.scores),
                # Rewards take maps of any size; small ones spare the data set.
                "misalignment_map": resized(picture.maps["misalignment"], 72).tolist(),
                "artifact_map": resized(picture.maps["artifact"], 72).tolist(),
            }
            for picture in pictures
        ]
    )


def main(arguments: list[str] | None = None) -> GRPOTrainer:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args(arguments)
    model, processor = tiny_network()
    with tempfile.TemporaryDirectory() as output:
        ratings = f"{output}/ratings"
        make_miniature_richhf(output=ratings, sizes={"train": 4}, sample_share=0, processes=1)
        trainer = GRPOTrainer(
            model=model,
            processing_class=processor,
            reward_funcs=list(REWARDS.values()),
            rollout_func=Rollout(model.config.get_text_config().hidden_size),
            train_dataset=data_set(read_split(Path(ratings), "train").pictures),
            args=GRPOConfig(
                output_dir=output,
                max_steps=options.steps,
                per_device_train_batch_size=8,
                num_generations=4,
                max_completion_length=16,
                loss_type="grpo",
                learning_rate=2e-6,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
            ),
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    for name in REWARDS:
        print(name, *(f"{entry[f'rewards/{name}/mean']:.3f}" for entry in logged))
    return trainer


if __name__ == "__main__":
    main()
