"""HPSv3: human preference as a normal distribution, by Qwen2-VL with a head for mean and spread.

Ma et al., "HPSv3: Towards Wide-Spectrum Human Preference Score", ICCV 2025. The instruction, the
head and the position of every token are those of the package hpsv3 1.0.0: `dataset/
data_collator_qwen.py`, `model/qwen2vl_trainer.py` and `inference.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Unpack

from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import CheckpointError
from tts_verifier.types import Cost, Detail, Verdict
from tts_verifier.types.score_names import SIGMA
from tts_verifier.verifiers.vision_language.inference.engine import Question, QuestionEngine
from tts_verifier.verifiers.vision_language.inference.loading import (
    LoadingOptions,
    check_loading,
    family_config,
    find_folder,
    place,
    usual_dtype,
)
from tts_verifier.verifiers.vision_language.inference.processor import load_processor
from tts_verifier.verifiers.vision_language.instructions import HPSV3 as INSTRUCTION
from tts_verifier.verifiers.vision_language.reward_model import load_reward_model
from tts_verifier.verifiers.vision_language.verifier import VisionLanguageVerifier

PIXELS: Final = 256 * 28 * 28
"""Every image is resized to about as many pixels, whatever its size."""
_BASE: Final = "Qwen/Qwen2-VL-7B-Instruct"


class HPSv3(VisionLanguageVerifier):
    """Scores `mu`, the mean preference (unbounded), and `mu_sigma`, its deviation (above 0).

    The model was trained to let the deviation grow where people disagree. The objective is `mu`.

    Safe to share between threads: calls wait for each other.

    Args:
        model: a folder with a .safetensors file of HPSv3, or a hub id.
        base: a folder or a hub id of the Qwen2-VL that it was trained from, for the config,
            tokenizer and image processor; None = `model` if it has them, or else
            Qwen/Qwen2-VL-7B-Instruct.
        **options: see `LoadingOptions`; `revision` is that of `model`.

    Raises:
        CheckpointError: a checkpoint cannot be found, or its parts do not fit together.
        InputError: an option is not usable.
    """

    name = "hpsv3"
    objective = Objective({"mu": 1.0})
    score_names: Collection[str] = ("mu", "mu" + SIGMA)

    def __init__(
        self,
        model: str | Path | QuestionEngine = "MizzenAI/HPSv3",
        *,
        base: str | Path | None = None,
        **options: Unpack[LoadingOptions],
    ) -> None:
        self._base = base
        super().__init__(model, {"base": None if base is None else str(base)}, **options)

    def verdicts(
        self, images: Sequence[Image.Image], prompts: Sequence[str], detail: Detail
    ) -> list[Verdict]:
        """Sends all images through the reward model."""
        texts = [_instruction(self.engine.plain(prompt)) for prompt in prompts]
        questions = [Question(i, t) for i, t in zip(images, texts, strict=True)]
        engine = self.engine
        rows = engine.each(questions, lambda x, _: engine.model(**engine.upload(x)).tolist())
        return [_verdict_of(mu, log_sigma, detail) for mu, log_sigma in rows]

    def _load(self, model: str | Path, options: LoadingOptions) -> QuestionEngine:
        check_loading(options)
        folder = find_folder(model, options)
        base, offline = self._base, options.get("local_files_only", False)
        if base is None and not (folder / "config.json").is_file():
            base = _BASE
        home = folder if base is None else find_folder(base, {"local_files_only": offline})
        config = family_config(home)
        if config.model_type != "qwen2_vl":
            raise CheckpointError(
                f"HPSv3 needs a Qwen2-VL as base, such as {_BASE}; {home} is a {config.model_type}."
            )
        processor = load_processor(home, config.model_type)
        processor.image_processor.size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
        dtype = usual_dtype(options)
        network = load_reward_model(folder, config, processor.tokenizer, dtype)
        target = place(network, options)
        size, probe = options.get("batch_size"), _instruction("?")
        return QuestionEngine(network, processor, batch_size=size, home=target, probe=probe)


def _instruction(prompt: str) -> str:
    return INSTRUCTION.replace("{text_prompt}", prompt)


def _verdict_of(mu: float, log_sigma: float, detail: Detail) -> Verdict:
    # A deviation beyond e^100 is no deviation, and soon no float.
    finite = math.isfinite(mu) and math.isfinite(log_sigma) and log_sigma < 100
    values = (mu, math.exp(log_sigma)) if finite else (math.nan, math.nan)
    return Verdict(
        dict(zip(HPSv3.score_names, values, strict=True)),
        detail=detail,
        cost=Cost(verifier_calls=1),
        error="" if finite else f"the head gave {mu} and {log_sigma}, which are no preference",
    )
