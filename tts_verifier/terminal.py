"""Text for terminals: what others wrote is shown, and never obeyed."""

from __future__ import annotations

import re
from typing import Final

# Control characters but line feed and tab, which the package prints itself; marks that turn the
# direction of text; halves of letters, which no terminal can show.
_OBEYED: Final = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: object) -> str:
    r"""Returns text that a terminal shows and does not obey: an escape becomes `\x1b`.

    Ids, prompts and errors in a run folder from somebody else may hold codes that clear the
    screen, rename the window or write over earlier lines. Lines of JSON stay JSON.
    """
    return _OBEYED.sub(lambda match: _escape(match.group()), str(text))


def _escape(letter: str) -> str:
    # JSON escapes the letters before DEL itself, and for the others it knows this form alone.
    return ascii(letter)[1:-1] if letter < "\x7f" else f"\\u{ord(letter):04x}"
