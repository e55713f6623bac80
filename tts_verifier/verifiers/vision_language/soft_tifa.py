"""Soft-TIFA: the probabilities of the right answers to a prompt's atoms, and their means.

Kamath et al., "GenEval 2: Addressing Benchmark Drift in Text-to-Image Evaluation", 2512.16853. The
arithmetic mean estimates how many atoms are right, the geometric mean whether the prompt is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Unpack

from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError
from tts_verifier.types import Cost, Detail, Verdict
from tts_verifier.verifiers.vision_language.atoms import Atom, atoms_of, read_atoms, split_prompt
from tts_verifier.verifiers.vision_language.inference.engine import Question, QuestionEngine
from tts_verifier.verifiers.vision_language.inference.loading import LoadingOptions
from tts_verifier.verifiers.vision_language.inference.replies import (
    answer_ids,
    answer_probabilities,
)
from tts_verifier.verifiers.vision_language.verifier import VisionLanguageVerifier
from tts_verifier.verifiers.vision_language.vqascore import NOT_FINITE, QUESTION, check_template

ONE_WORD: Final = "{} Answer in one word."
"""What GenEval 2 asks."""


class SoftTIFA(VisionLanguageVerifier):
    """Scores `soft_tifa_am` and `soft_tifa_gm`: means over a prompt's atoms, in [0, 1].

    Safe to share between threads: calls wait for each other.

    The reply lists the atoms, a line of JSON each: its probability, question and answer. The
    probability of an answer is the sum over its forms that are a single token (`Atom.forms`).

    Args:
        model: a folder, a hub id, or an engine that another judge has loaded.
        atoms: the atoms of prompts: a file (see `atoms.read_atoms`), or prompt -> list of questions
            or of pairs of a question and its answer. None = every prompt is split by rules
            (`atoms.split_prompt`). With atoms, a prompt that has none is refused.
        question: what is asked; an atom's question takes the place of its only `{}`.
        template: the question about a part of a prompt that is split.
        **options: see `LoadingOptions`.

    Raises:
        CheckpointError: the checkpoint cannot be found, or its parts do not fit together.
        InputError: an option is not usable, `atoms` cannot be read, or an answer is several tokens
            in all its forms.
    """

    name = "soft-tifa"
    objective = Objective({"soft_tifa_gm": 1.0})
    score_names: Collection[str] = ("soft_tifa_am", "soft_tifa_gm")

    def __init__(
        self,
        model: str | Path | QuestionEngine = "Qwen/Qwen3-VL-8B-Instruct",
        *,
        atoms: str | Path | Mapping[str, Any] | None = None,
        question: str = ONE_WORD,
        template: str = QUESTION,
        **options: Unpack[LoadingOptions],
    ) -> None:
        check_template("question", question)
        check_template("template", template)
        if isinstance(atoms, Mapping):
            self.atoms: Mapping[str, list[Atom]] | None = {
                prompt: atoms_of(value, f"{prompt!r:.60}") for prompt, value in atoms.items()
            }
        else:
            self.atoms = None if atoms is None else read_atoms(atoms)
        source = str(atoms) if isinstance(atoms, str | Path) else json.dumps(self.atoms)
        settings = {"question": question, "template": template, "atoms": source}
        super().__init__(model, settings, **options)
        self.question, self.template = question, template
        for listed in (self.atoms or {}).values():
            for atom in listed:
                self._ids(atom)

    def check_prompt(self, index: int, prompt: str) -> None:
        """Raises InputError for a prompt that cannot be one, or has no atoms."""
        super().check_prompt(index, prompt)
        self.atoms_of(prompt)

    def verdicts(
        self, images: Sequence[Image.Image], prompts: Sequence[str], detail: Detail
    ) -> list[Verdict]:
        """Asks about all atoms of all images."""
        atoms = [self.atoms_of(prompt) for prompt in prompts]
        questions = [
            Question(image, self.question.replace("{}", atom.question), self._ids(atom))
            for image, listed in zip(images, atoms, strict=True)
            for atom in listed
        ]
        probs = iter(answer_probabilities(self.engine, questions))
        return [_verdict(listed, [next(probs) for _ in listed], detail) for listed in atoms]

    def atoms_of(self, prompt: str) -> list[Atom]:
        """Returns the atoms of a prompt, harmless to the tokenizer.

        Raises:
            InputError: the verifier was given atoms, and has none for this prompt.
        """
        if self.atoms is None:
            listed = split_prompt(prompt, self.template)
        elif prompt in self.atoms:
            listed = list(self.atoms[prompt])
        else:
            raise InputError(
                f"soft-tifa needs atoms for every prompt, and was given none for {prompt!r:.100}. "
                "Add them, or leave out atoms to have prompts split."
            )
        return [Atom(self.engine.plain(atom.question), atom.answer) for atom in listed]

    def _ids(self, atom: Atom) -> tuple[int, ...]:
        if ids := answer_ids(self.engine.tokenizer, atom.forms):
            return ids
        raise InputError(
            "The answer of an atom must be a single token of the model's tokenizer, "
            f"{atom.answer!r:.60} to {atom.question!r:.100} is several. Ask a question whose "
            "answer is a short word.",
            argument="atoms",
        )


def _verdict(atoms: Sequence[Atom], probs: Sequence[float], detail: Detail) -> Verdict:
    lines = [
        {"probability": None if math.isnan(p) else round(p, 6), **atom._asdict()}
        for atom, p in zip(atoms, probs, strict=True)
    ]
    arithmetic = sum(probs) / len(probs)
    # A probability of zero makes the product zero, and has no logarithm.
    geometric = math.exp(sum(map(math.log, probs)) / len(probs)) if all(probs) else 0.0
    if math.isnan(arithmetic):
        geometric = math.nan
    return Verdict(
        {"soft_tifa_am": arithmetic, "soft_tifa_gm": geometric},
        text="\n".join(json.dumps(line, ensure_ascii=False) for line in lines),
        detail=detail,
        cost=Cost(verifier_calls=1),
        error=NOT_FINITE if math.isnan(arithmetic) else "",
    )
