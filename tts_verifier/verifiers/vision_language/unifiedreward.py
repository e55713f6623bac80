"""Judges that write their scores: UnifiedReward and VisualQuality-R1, with the texts of training.

UnifiedReward 2.0: CodeGoat24/UnifiedReward, `inference_qwen/UnifiedReward-2.0-inference/
point_score_ACS_image_generation.py`. VisualQuality-R1: TianheWu/VisualQuality-R1, README, "Fast".
Both sample there; here replies are greedy, and scores also come as expectations over the digits.
VisualQuality-R1's code gives a random score where a reply has none; here it is NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, Final, Unpack

from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError
from tts_verifier.types import Cost, Detail, Setting, Verdict
from tts_verifier.types.score_names import EXPECTED
from tts_verifier.verifiers.judge_options import check_flags
from tts_verifier.verifiers.vision_language.digits import expected_number
from tts_verifier.verifiers.vision_language.inference.engine import Question, QuestionEngine
from tts_verifier.verifiers.vision_language.inference.loading import LoadingOptions
from tts_verifier.verifiers.vision_language.inference.replies import (
    Reply,
    digit_ids,
    greedy_replies,
)
from tts_verifier.verifiers.vision_language.instructions import (
    ANSWER_AFTER_THINKING,
    ANSWER_ALONE,
    UNIFIED_REWARD,
    VISUAL_QUALITY,
)
from tts_verifier.verifiers.vision_language.verifier import VisionLanguageVerifier

PICTURE: Final = "Picture 1: "
"""What Qwen's chat template writes with `add_vision_id`, as VisualQuality-R1's code asks it to."""
LOWEST: Final = 1
HIGHEST: Final = 5
_DECIMAL: Final = r"(\d+(?:\.\d+)?)(?![\d.]*\d)"


class WrittenScores(VisionLanguageVerifier):
    """Scores that a model writes on a scale from 1 to 5, and their expectations `…_expected`.

    Safe to share between threads: calls wait for each other.
    """

    patterns: ClassVar[dict[str, re.Pattern[str]]]
    """Score name -> what it looks like in a reply; the first group is the number."""

    def __init__(
        self,
        model: str | Path | QuestionEngine,
        question: str,
        max_new_tokens: int,
        *,
        before: str = "",
        **options: Unpack[LoadingOptions],
    ) -> None:
        whole = isinstance(max_new_tokens, int) and not isinstance(max_new_tokens, bool)
        if not (whole and 1 <= max_new_tokens < 2**16):
            raise InputError(
                f"max_new_tokens must be a whole number from 1 to 65535, got {max_new_tokens!r}.",
                argument="max_new_tokens",
            )
        settings: dict[str, Setting] = {"question": question, "max_new_tokens": max_new_tokens}
        super().__init__(model, settings, **options)
        self.question, self.before, self.max_new_tokens = question, before, max_new_tokens
        digit_ids(self.engine.tokenizer)

    def verdicts(
        self, images: Sequence[Image.Image], prompts: Sequence[str], detail: Detail
    ) -> list[Verdict]:
        """Reads the replies about all images."""
        questions = [
            Question(
                image,
                self.question.replace("{}", self.engine.plain(prompt)),
                before=self.before,
            )
            for image, prompt in zip(images, prompts, strict=True)
        ]
        replies = greedy_replies(self.engine, questions, max_new_tokens=self.max_new_tokens)
        return [self._verdict(reply, detail) for reply in replies]

    def _verdict(self, reply: Reply, detail: Detail) -> Verdict:
        written, expected = {}, {}
        for score, pattern in self.patterns.items():
            found = [m for m in pattern.finditer(reply.text) if _on_scale(m.group(1))]
            value = number = math.nan
            if found:
                value = float(found[-1].group(1))
                number = expected_number(reply, *found[-1].span(1), LOWEST, HIGHEST) or value
            written[score], expected[score + EXPECTED] = value, number
        return Verdict(
            written | expected,
            text=reply.text,
            detail=detail,
            cost=Cost(verifier_calls=1),
            error=self._problem(reply, [name for name, v in written.items() if math.isnan(v)]),
        )

    def _problem(self, reply: Reply, missing: Sequence[str]) -> str:
        if not missing:
            return ""
        cut = "" if reply.ended else f"; it was cut off after {self.max_new_tokens} tokens"
        return (
            f"the reply has no {', '.join(missing)} from {LOWEST} to {HIGHEST} in the form that "
            f"was asked for{cut}: {reply.text[:100]!r}"
        )


class UnifiedReward(WrittenScores):
    """Scores `alignment`, `coherence` and `style`, 1 to 5, by UnifiedReward 2.0.

    Safe to share between threads: calls wait for each other. The objective is the mean of the
    three expected scores.

    Args:
        model: a folder, a hub id, or an engine that another judge has loaded.
        max_new_tokens: the most tokens of a reply.
        **options: see `LoadingOptions`.

    Raises:
        CheckpointError: the checkpoint cannot be found, or its parts do not fit together.
        InputError: an option is not usable, or the tokenizer does not write digit by digit.
    """

    name = "unifiedreward"
    patterns: ClassVar[dict[str, re.Pattern[str]]] = {
        score.lower(): re.compile(rf"{score} Score \(1-5\):\s*{_DECIMAL}")
        for score in ("Alignment", "Coherence", "Style")
    }
    score_names: Collection[str] = (*patterns, *(score + EXPECTED for score in patterns))
    objective = Objective(dict.fromkeys([score + EXPECTED for score in patterns], 1 / 3))

    def __init__(
        self,
        model: str | Path | QuestionEngine = "CodeGoat24/UnifiedReward-2.0-qwen-7b",
        *,
        max_new_tokens: int = 128,
        **options: Unpack[LoadingOptions],
    ) -> None:
        super().__init__(model, UNIFIED_REWARD, max_new_tokens, **options)


class VisualQuality(WrittenScores):
    """Scores `quality`, 1 to 5, by VisualQuality-R1. It does not read the prompt.

    Safe to share between threads: calls wait for each other. The objective is the expected score.

    Args:
        model: a folder, a hub id, or an engine that another judge has loaded.
        thinking: ask for the model's reasons first, which takes longer.
        max_new_tokens: the most tokens of a reply.
        **options: see `LoadingOptions`.

    Raises:
        CheckpointError: the checkpoint cannot be found, or its parts do not fit together.
        InputError: an option is not usable, or the tokenizer does not write digit by digit.
    """

    name = "visualquality-r1"
    patterns: ClassVar[dict[str, re.Pattern[str]]] = {
        "quality": re.compile(rf"<answer>\s*{_DECIMAL}\s*</answer>")
    }
    score_names: Collection[str] = ("quality", "quality" + EXPECTED)
    objective = Objective({"quality" + EXPECTED: 1.0})

    def __init__(
        self,
        model: str | Path | QuestionEngine = "TianheWu/VisualQuality-R1-7B",
        *,
        thinking: bool = False,
        max_new_tokens: int = 512,
        **options: Unpack[LoadingOptions],
    ) -> None:
        check_flags(thinking=thinking)
        question = VISUAL_QUALITY + (ANSWER_AFTER_THINKING if thinking else ANSWER_ALONE)
        super().__init__(model, question, max_new_tokens, before=PICTURE, **options)


def _on_scale(number: str) -> bool:
    return LOWEST <= float(number) <= HIGHEST
