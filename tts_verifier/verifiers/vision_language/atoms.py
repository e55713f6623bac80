"""The atoms of prompts: small questions about an image, each with the answers that are right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tts_verifier.errors import InputError, readable_name
from tts_verifier.loading.regular_files import user_path
from tts_verifier.tables import PROMPT_ROLE, RoleColumns, read_table

COLUMNS: Final = ("vqa_list", "atoms", "questions")
"""Columns of a prompt file that may hold atoms; the first is GenEval 2's."""
_PART_ENDS: Final = re.compile(r"\s*[,;.]\s+(?:and\s+)?|\s+and\s+|[,;.]$")
_NUMBER_WORDS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip


class Atom(NamedTuple):
    """A question about an image, and its answer."""

    question: str
    """Such as "Are the bicycles white?"."""
    answer: str = "Yes"
    """What is right, in one word."""

    @property
    def forms(self) -> tuple[str, ...]:
        """The answer as a model may write it: its case, a space before it, a number's digit.

        These are the forms that GenEval 2 counts.
        """
        words = [self.answer, self.answer.capitalize(), self.answer.lower()]
        if self.answer.lower() in _NUMBER_WORDS:
            words.append(str(_NUMBER_WORDS.index(self.answer.lower())))
        return tuple(dict.fromkeys(w for word in words for w in (word, f" {word}")))


def split_prompt(prompt: str, template: str) -> list[Atom]:
    """Returns a question for each part of a prompt, where no list of atoms is given.

    Parts end at commas, semicolons, points and "and"; what is "left of" what stays in one part.

    Args:
        prompt: such as "a red cube and a blue ball, on a table".
        template: the question, with `{}` for the part.
    """
    parts = [part.strip() for part in _PART_ENDS.split(prompt)]
    found = [part for part in parts if part] or [prompt]
    return [Atom(template.replace("{}", part)) for part in dict.fromkeys(found)]


def read_atoms(path: str | Path) -> dict[str, list[Atom]]:
    """Reads the atoms of the prompts of a file.

    Args:
        path: a table with a column of prompts and one of `COLUMNS`: a list of questions, or of
            pairs of a question and its answer. In a .csv a cell holds the list as JSON.

    Returns:
        Prompt -> its atoms. A prompt without any is left out.

    Raises:
        InputError: the file cannot be read, or has no such columns.
    """
    file = user_path(path)
    rows, name = read_table(file), readable_name(file)
    prompts = RoleColumns(rows, PROMPT_ROLE)
    column = next((c for c in COLUMNS if c in prompts.names), None)
    if not prompts.found or column is None:
        raise InputError(
            f"A file of atoms needs a column of prompts and one of {', '.join(COLUMNS)}; {name} "
            f"has not. {prompts.listed}",
            argument="atoms",
        )
    atoms = {}
    for row in rows:
        values = row.value if isinstance(row.value, Mapping) else {}
        if values.get(column):
            prompt = prompts.cell(row, row.place)
            atoms[prompt or ""] = atoms_of(values[column], row.place)
    return atoms


def atoms_of(value: Any, place: str) -> list[Atom]:
    """Returns the atoms that a cell holds.

    Args:
        value: a list of questions or pairs, or such a list as JSON.
        place: names the cell in messages.

    Raises:
        InputError: it is none of these.
    """
    try:
        items = json.loads(value) if isinstance(value, str) else value
        pairs = [[item, "Yes"] if isinstance(item, str) else list(item) for item in items]
        atoms = [Atom(question.strip(), answer.strip()) for question, answer in pairs]
        if atoms and all(atom.question and atom.answer for atom in atoms):
            return atoms
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(
        f"{place}: atoms must be a list of questions, or of pairs of a question and its answer, "
        f"got {value!r:.200}.",
        argument="atoms",
    )
