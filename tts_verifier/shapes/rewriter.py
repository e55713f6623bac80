"""Rewrites captions of the miniature world from a verdict, by rules instead of a language model.

Only words of the grammar may be used, since the generator knows no others. What may help:

- a wrong count: ask for one fewer if the picture shows too many, for one more if too few. The
  reply says how many there are, as "four black circle - 5 wrong";
- two objects: name them the other way round, so that the one that went wrong comes first;
- everything else: another of the grammar's phrasings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from tts_verifier.interfaces import RewriteRequest
from tts_verifier.shapes.grammar import Spec, parse_caption, phrase, variants
from tts_verifier.shapes.vocabulary import COUNTS
from tts_verifier.types import Setting

_OPPOSITE: Final = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above",
}  # fmt: skip
_SHOWN: Final = re.compile(r" - ([0-9]{1,3}) wrong\b")


class ShapesRewriter:
    """Rewrites captions by the rules above.

    Safe to share between threads: it keeps no state.
    """

    settings: Mapping[str, Setting] = {"rewriter": "shapes"}

    def rewrite(self, requests: Sequence[RewriteRequest]) -> list[str]:
        """Returns a caption for each request.

        Raises:
            InputError: a prompt is no caption of this world.
        """
        return [self._text(request) for request in requests]

    def _text(self, request: RewriteRequest) -> str:
        wanted, asked = parse_caption(request.prompt), parse_caption(request.asked)
        reply = "" if request.trial.verdict is None else request.trial.verdict.text
        count = _count_to_ask_for(wanted.count, asked.count, reply)
        if wanted.count > 1 and count != asked.count:
            return phrase(replace(asked, count=count))
        if len(asked.nouns) == 2 and asked.nouns == wanted.nouns:
            return phrase(_turned(asked))
        # The next phrasing; after the last one comes the first again.
        texts = [phrase(asked, number) for number in range(variants(asked))]
        place = texts.index(request.asked) if request.asked in texts else -1
        return texts[(place + 1) % len(texts)]


def _count_to_ask_for(wanted: int, asked: int, reply: str) -> int:
    """Returns the number of objects to ask for, which compensates what the picture shows."""
    shown = _SHOWN.search(reply)
    if shown is None or int(shown[1]) == wanted:
        return asked
    step = 1 if int(shown[1]) < wanted else -1
    return min(max(asked + step, 2), len(COUNTS))


def _turned(spec: Spec) -> Spec:
    """Returns the same meaning with its objects in the other order."""
    relation = spec.relation and _OPPOSITE[spec.relation]
    return replace(spec, nouns=spec.nouns[::-1], relation=relation)
