"""The texts that a prompt puts in quotes: what the image should show in letters."""

from __future__ import annotations

import re
from typing import Final

# A mark after a letter or a digit is an inch or an apostrophe, and opens nothing.
_OPENS: Final = r"(?<![A-Za-z0-9])"
_CLOSES: Final = r"(?![A-Za-z0-9])"
# An apostrophe stands between two letters.
_STRAIGHT: Final = r"(?:[^']|(?<=[A-Za-z])'(?=[A-Za-z]))+?"
_CURLY: Final = r"(?:[^‘’]|(?<=[A-Za-z])’(?=[A-Za-z]))+?"
_QUOTED: Final = re.compile(
    "|".join(
        (
            # A backslash takes the meaning from the mark behind it.
            rf'{_OPENS}"((?:\\.|[^"\\])+)"{_CLOSES}',
            r"“([^“”]+)”",
            r"„([^„“”]+)[“”]",
            # As Swedes and Finns write them.
            rf"{_OPENS}”([^“”]+)”{_CLOSES}",
            r"«([^«»]+)»",
            r"»([^«»]+)«",
            r"‹([^‹›]+)›",
            r"「([^「」]+)」",
            r"『([^『』]+)』",
            r"‚([^‚‘’]+)[‘’]",
            # The quotes of rock 'n' roll are apostrophes.
            rf"{_OPENS}'(?!n'|\d0s\b|\s)({_STRAIGHT})(?<!\s)'{_CLOSES}",
            rf"‘(?!n’|\d0s\b)({_CURLY})’{_CLOSES}",
        )
    ),
    re.IGNORECASE | re.DOTALL,
)
_DOUBLED: Final = re.compile(r'""(?=\S)([^"]+)(?<=\S)""')
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def quoted_texts(prompt: str) -> list[str]:
    r"""Returns the texts in quotes, in order, each once.

    Quotes are straight or curly, double or single, „low“, «angled» or 「cornered」, or ”of one
    kind”. Apostrophes and the sign of inches open no quote. Inside straight double quotes `\"` is a
    letter; in a prompt where every one of them is escaped, they are the quotes. Doubled quotes, as
    in CSV, count as one. A comma before the closing quote belongs to the sentence and is left out,
    white space becomes a single space.
    """
    if not re.search(r'(?<!\\)"', prompt):
        prompt = prompt.replace('\\"', '"')
    prompt = _DOUBLED.sub(r'"\1"', prompt).replace('""', "")
    found = []
    for match in _QUOTED.finditer(prompt):
        text = next(group for group in match.groups() if group is not None)
        text = _ESCAPED.sub(lambda m: " " if m[1] in "nrt" else m[1], text)
        found.append(" ".join(text.split()).rstrip(",").rstrip())
    return list(dict.fromkeys(text for text in found if any(c.isalnum() for c in text)))
