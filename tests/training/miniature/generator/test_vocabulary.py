from tts_verifier.training.miniature.generator.data import (
    tokenize,
)
from tts_verifier.training.miniature.generator.vocabulary import PROMPT_TOKENS, caption_words


def test_every_word_of_the_world_is_one_token(pipe):
    for word in caption_words():
        assert len(pipe.tokenizer(word).input_ids) == 3, word


def test_any_text_has_tokens(pipe):
    ids = pipe.tokenizer("Ein Café ☕ mit Blick").input_ids
    assert pipe.tokenizer.decode(ids, skip_special_tokens=True).strip() == "ein café ☕ mit blick"
    assert tokenize(pipe.tokenizer, ["a ring " * 40]).shape == (1, PROMPT_TOKENS)
