"""What a model replies, and how probable it is. Replies are greedy, so they do not vary."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_verifier.errors import InputError
from tts_verifier.verifiers.vision_language.inference.engine import Question, QuestionEngine
from tts_verifier.verifiers.vision_language.inference.qwen import can_read, first_scores


class Reply(NamedTuple):
    """A reply with the probabilities of the digits at each of its tokens."""

    text: str
    """The reply, without special tokens."""
    pieces: list[str]
    """The text of each token alone."""
    digits: NDArray[np.float32]
    """(tokens, 10): the probabilities of "0" to "9" among these ten, in [0, 1]."""
    ended: bool
    """False if the limit on its tokens cut it off."""


def answer_ids(tokenizer: Any, forms: Sequence[str]) -> tuple[int, ...]:
    """Returns the ids of those forms of an answer that are a single token; () if none is.

    Args:
        tokenizer: of the engine.
        forms: such as ("Yes", "yes").
    """
    encoded = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    return tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))


def answer_probabilities(engine: QuestionEngine, questions: Sequence[Question]) -> list[float]:
    """Returns the probability that the reply to each question begins with one of its `answers`.

    It is the softmax over the whole vocabulary of the scores of the first token, with the logits
    processors of the checkpoint's generation config, as `generate` of transformers gives them
    (t2v_metrics, `vqascore_models/qwen2vl_model.py`). NaN where the scores are not finite.
    """

    def answer(tensors: Any, asked: Sequence[Question]) -> list[Tensor]:
        probs = _first_scores(engine, tensors).float().softmax(-1)
        return [row[list(q.answers)].sum() for row, q in zip(probs, asked, strict=True)]

    found = engine.each(questions, answer)
    return [float(value) for value in torch.stack(found).tolist()] if found else []


def probabilities_of(
    engine: QuestionEngine, questions: Sequence[Question], ids: Sequence[int]
) -> list[list[float]]:
    """Returns, for each question, the probability of each token as the first of the reply.

    Args:
        engine: asks the model.
        questions: their `answers` are not used.
        ids: of the tokens.
    """

    def answer(tensors: Any, asked: Sequence[Question]) -> list[Tensor]:
        return list(_first_scores(engine, tensors).float().softmax(-1)[:, list(ids)])

    found = engine.each(questions, answer)
    rows: list[list[float]] = torch.stack(found).tolist() if found else []
    return rows


def _first_scores(engine: QuestionEngine, tensors: Any) -> Tensor:
    """Returns the scores of each reply's first token, (prompts, vocabulary)."""
    one_each = len(tensors.get("image_grid_thw", ())) == len(tensors["input_ids"])
    if one_each and can_read(engine.model):
        return first_scores(engine.model, tensors)
    done = engine.model.generate(
        **engine.upload(tensors), generation_config=_greedy(engine.model, 1)
    )
    scores: Tensor = done.scores[0]
    return scores


def greedy_replies(
    engine: QuestionEngine, questions: Sequence[Question], *, max_new_tokens: int
) -> list[Reply]:
    """Returns the greedy reply to each question.

    Args:
        engine: asks the model.
        questions: their `answers` are not used.
        max_new_tokens: the most tokens of a reply.

    Raises:
        InputError: the tokenizer does not write numbers digit by digit.
    """
    tokenizer = engine.tokenizer
    columns = digit_ids(tokenizer)

    def answer(tensors: Any, asked: Sequence[Question]) -> list[Reply]:
        done = engine.model.generate(
            **engine.upload(tensors),
            generation_config=_greedy(engine.model, max_new_tokens),
        )
        ids = done.sequences[:, -len(done.scores) :].tolist()
        scores = torch.stack([step[:, columns] for step in done.scores], 1)
        digits = scores.float().softmax(-1).cpu().numpy()
        return [_reply(tokenizer, row, probs) for row, probs in zip(ids, digits, strict=True)]

    return engine.each(questions, answer)


def digit_ids(tokenizer: Any) -> list[int]:
    """Returns the ids of the tokens "0" to "9".

    Raises:
        InputError: one of them is several tokens.
    """
    found = [answer_ids(tokenizer, [str(digit)]) for digit in range(10)]
    if not all(found):
        raise InputError(
            "Expected scores need a tokenizer that writes numbers digit by digit; for this one "
            f"{''.join(str(d) for d in range(10) if not found[d])} are several tokens. Take "
            "another checkpoint.",
            argument="model",
        )
    return [ids[0] for ids in found]


def _reply(tokenizer: Any, ids: list[int], digits: NDArray[np.float32]) -> Reply:
    special = set(tokenizer.all_special_ids)
    end = next((i for i, token in enumerate(ids) if token in special), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    pieces = [tokenizer.decode([token]) for token in ids[:end]]
    return Reply(text, pieces, digits[:end], end < len(ids))


def _greedy(model: Any, max_new_tokens: int) -> Any:
    """Returns the checkpoint's generation config for greedy replies of some tokens."""
    config = copy.deepcopy(model.generation_config)
    # Without sampling, transformers warns of whatever belongs to it.
    config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    config.update(max_new_tokens=max_new_tokens, max_length=None)
    config.update(output_scores=True, return_dict_in_generate=True)
    return config
