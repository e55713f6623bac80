"""VQAScore: the probability that a model answers "Yes" when asked whether an image shows a prompt.

It also compares two images that the model sees at once, by the probabilities of "1" and "2".

Lin et al., "Evaluating Text-to-Visual Generation with Image-to-Text Generation", ECCV 2024. The
question and the formula are those of t2v_metrics, `models/vqascore_models/qwen2vl_model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, Unpack

from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.choice.views import PREFERRED
from tts_verifier.errors import InputError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import check_pairs
from tts_verifier.types import Cost, Detail, Verdict
from tts_verifier.verifiers.imagedoctor.requests import check_prompt
from tts_verifier.verifiers.vision_language.inference.engine import (
    FIRST,
    Question,
    QuestionEngine,
)
from tts_verifier.verifiers.vision_language.inference.loading import LoadingOptions
from tts_verifier.verifiers.vision_language.inference.replies import (
    answer_ids,
    answer_probabilities,
    digit_ids,
    probabilities_of,
)
from tts_verifier.verifiers.vision_language.verifier import VisionLanguageVerifier, in_parts

QUESTION: Final = 'Does this image show "{}"?'
WHICH: Final = (
    '\nWhich of the two pictures shows "{}" better? Answer with the number of the picture, 1 or 2.'
)
"""What is asked about a pair."""
NOT_FINITE: Final = (
    "the model gave no finite probability; bfloat16 or float32 as dtype does where float16 does not"
)
"""Why a probability is NaN."""


class VQAScore(VisionLanguageVerifier):
    """Scores `vqascore`: P("Yes") in [0, 1], on any image-text-to-text model of transformers.

    Safe to share between threads: calls wait for each other.

    Args:
        model: a folder, a hub id, or an engine that another judge has loaded.
        question: what is asked; the prompt takes the place of its only `{}`.
        answer: the answer whose probability counts; a single token.
        **options: see `LoadingOptions`.

    Raises:
        CheckpointError: the checkpoint cannot be found, or its parts do not fit together.
        InputError: an option is not usable, `question` has no place for the prompt, or `answer`
            is several tokens.
    """

    name = "vqascore"
    objective = Objective({"vqascore": 1.0})
    score_names: Collection[str] = ("vqascore",)

    def __init__(
        self,
        model: str | Path | QuestionEngine = "Qwen/Qwen2.5-VL-7B-Instruct",
        *,
        question: str = QUESTION,
        answer: str = "Yes",
        **options: Unpack[LoadingOptions],
    ) -> None:
        check_template("question", question)
        if not isinstance(answer, str):
            raise InputError(f"answer must be a text, got {answer!r:.80}.", argument="answer")
        super().__init__(model, {"question": question, "answer": answer}, **options)
        self.question = question
        self._answers = single_token(self.engine.tokenizer, answer)

    def verdicts(
        self, images: Sequence[Image.Image], prompts: Sequence[str], detail: Detail
    ) -> list[Verdict]:
        """Asks about all images."""
        texts = [self.question.replace("{}", self.engine.plain(prompt)) for prompt in prompts]
        pairs = zip(images, texts, strict=True)
        questions = [Question(image, text, self._answers) for image, text in pairs]
        return [
            Verdict(
                {"vqascore": probability},
                detail=detail,
                cost=Cost(verifier_calls=1),
                error=NOT_FINITE if math.isnan(probability) else "",
            )
            for probability in answer_probabilities(self.engine, questions)
        ]

    def compare(
        self, first: Sequence[ImageLike], second: Sequence[ImageLike], prompts: Sequence[str]
    ) -> list[Verdict]:
        """Asks which of two images shows the prompt better; the model sees both at once.

        `preferred` is P("1") / (P("1") + P("2")) of the first token, where the first image is
        number 1. Models prefer a position, so ask in both orders, as a run does. It is NaN, and
        `error` says why, where the model does not take the two images with the prompt.

        Raises:
            InputError: an image or a prompt is not usable, the lengths differ, or the model writes
                1 and 2 in several tokens.
        """
        ones, others = as_images(first), as_images(second)
        texts = check_pairs(ones, prompts)
        check_pairs(others, texts)
        for i, text in enumerate(texts):
            check_prompt(i, text)
        ids = digit_ids(self.engine.tokenizer)[1:3]
        questions = [
            Question(one, WHICH.replace("{}", self.engine.plain(text)), (), FIRST, other)
            for one, other, text in zip(ones, others, texts, strict=True)
        ]
        return in_parts(
            lambda part: [
                _preference(*row) for row in probabilities_of(self.engine, questions[part], ids)
            ],
            range(len(questions)),
            Verdict({PREFERRED: math.nan}, cost=Cost(verifier_calls=1)),
        )


def _preference(one: float, two: float) -> Verdict:
    cost, text = Cost(verifier_calls=1), f'P("1") = {one:.4f}, P("2") = {two:.4f}'
    if not one + two > 0:
        why = NOT_FINITE if math.isnan(one + two) else "the model answers neither 1 nor 2"
        return Verdict({PREFERRED: math.nan}, text=text, cost=cost, error=why)
    return Verdict({PREFERRED: one / (one + two)}, text=text, cost=cost)


def check_template(argument: str, template: object) -> None:
    """Raises InputError unless a template is a text with a single `{}`."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise InputError(
            f"{argument} must be a text with one {{}} for the prompt, got {template!r:.200}.",
            argument=argument,
        )


def single_token(tokenizer: Any, answer: str) -> tuple[int, ...]:
    """Returns the id of an answer.

    Raises:
        InputError: the answer is several tokens, so that its probability is not that of one.
    """
    ids = answer_ids(tokenizer, [answer])
    if not ids:
        pieces = tokenizer.tokenize(answer)
        raise InputError(
            f"answer must be a single token of the model's tokenizer, {answer!r:.80} is "
            f"{len(pieces)}: {pieces}. Give another answer, and a question that asks for it.",
            argument="answer",
        )
    return ids
