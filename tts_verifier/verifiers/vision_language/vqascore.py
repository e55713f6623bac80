"""VQAScore: the probability that a model answers "Yes" when asked whether an image shows a prompt.

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
from tts_verifier.errors import InputError
from tts_verifier.types import Cost, Detail, Verdict
from tts_verifier.verifiers.vision_language.inference.engine import Question, QuestionEngine
from tts_verifier.verifiers.vision_language.inference.loading import LoadingOptions
from tts_verifier.verifiers.vision_language.inference.replies import (
    answer_ids,
    answer_probabilities,
)
from tts_verifier.verifiers.vision_language.verifier import VisionLanguageVerifier

QUESTION: Final = 'Does this image show "{}"?'
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
