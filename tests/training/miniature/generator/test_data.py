import random

import torch

from tts_verifier.shapes.captions import is_held_out, random_specs
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.shapes.vocabulary import COLOURS, SHAPES
from tts_verifier.training.miniature.generator.data import (
    FIELD_CLASSES,
    caption_fields,
    caption_stream,
    render_captions,
)


def test_captions_say_what_the_fields_name():
    assert caption_fields(parse_caption("three red stars")) == [
        2,
        SHAPES.index("star"),
        0,
        6,
        8,
        2,
        4,
    ]
    position = caption_fields(parse_caption("a circle above a blue ring"))
    assert position == [4, 0, 8, SHAPES.index("ring"), list(COLOURS).index("blue"), 0, 2]
    for spec in random_specs(60, random.Random(0)):
        assert all(
            0 <= value < most
            for value, most in zip(caption_fields(spec), FIELD_CLASSES, strict=True)
        )


def test_training_draws_only_captions_of_its_split(pipe):
    ids, *_ = next(caption_stream(pipe.tokenizer, 240, seed=0, workers=0))
    texts = [pipe.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    assert 5 < texts.count("") < 50
    assert not any(is_held_out(parse_caption(text)) for text in texts if text)


def test_image_tokens_are_named_by_what_covers_them(pipe):
    captions = next(caption_stream(pipe.tokenizer, 24, seed=1, workers=0))
    labelled = render_captions(captions, torch.Generator().manual_seed(0))
    assert labelled.images.shape == (24, 3, 128, 128)
    assert labelled.shape.shape == labelled.colour.shape == (24, 64)
    background = labelled.shape == len(SHAPES)
    assert torch.equal(background, labelled.colour == len(COLOURS))
    assert 0.6 < background.float().mean() < 0.99
    blocks = labelled.images.unfold(2, 16, 16).unfold(3, 16, 16)
    dark = (blocks < 0.6).any(1).float().mean((-1, -2)).flatten(1)
    assert dark[background].mean() < 0.1 < dark[~background].mean()
