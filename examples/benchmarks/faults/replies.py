"""Mutated replies of ImageDoctor: the parser never raises, guesses nothing and is quick.

A case is one reply. Most are written from known scores and boxes, so that every value is known:
some of them are changed where the change must not matter, some where it makes one field unusable.
Others are mutilated at random or built to be slow; of these, every score must be the number that
stands at its span, and every box must be finite and have an area.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from faults.harness import Result, expect, of_kind
from tts_verifier.types.score_names import SCORE_NAMES
from tts_verifier.verifiers.imagedoctor.text.reply import ParsedReply, parse_reply

DEFAULT_CASES = 1_000_000
LIMIT = 10.0
SLOW = 0.010
"""Seconds of processor time."""
LONGEST = 20_000
"""Characters of the longest replies; 2,048 tokens are some 8,000."""
FIELDS = (
    "Semantic Alignment score",
    "Aesthetic score",
    "Plausibility score",
    "Overall Impression score",
)
_ODD = "ſKİıß\u2028\u2029\x85\x00\ufeff\u200b٣４½²∞−，：［］｛\U0001d7d8\ud800é\t\r\n\v\f\x1c"
_WORDS = (
    "<think>", "</think>", "<answer>", "</answer>", "score:", "[", "]", ",", ".", "1e5", "-", "+",
    "nan", "inf", "Infinity", "0x1", "1_0", "0.5", "1.0", "00.7", "/1", "%", "80 %", "[1,2,3,4]",
    "[0,0,512,512]", "semantic", "alignment", "aesthetic", "overall", "impression", ";", " ", "\n",
    "９", "１", "Aesthetic score: ", "Plausibility score: 0.9", "9" * 400, "1e400", "." * 9,
)  # fmt: skip

_UNUSABLE = (
    "1.5", "-0.1", "nan", "inf", "1e400", "0.5/1", "80 %", "", "0,7", "0x1", "1_0", "０.5", "٠.٣",
    "high", "0.5.1", "1e-", "--0.5", "9" * 400, "0.5 / 1", "²",
)  # fmt: skip


def case(number: int, dice: random.Random, home: Path) -> Result:
    """Writes one reply and reads it."""
    name = dice.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    with of_kind(name):
        text, known, boxes = _KINDS[name][1](dice)
        reasoning, ended = "<think>" in text or dice.random() < 0.3, dice.random() < 0.8
        if known is not None:
            reasoning, ended = True, True
        seconds, parsed = timed(text, reasoning, ended)
        check(text, parsed)
        if known is not None:
            same(known, parsed.scores)
        if boxes is not None:
            expect(parsed.boxes == boxes, f"boxes {boxes} read as {parsed.boxes}")
    if seconds > SLOW:
        return Result(name, "slow", f"{len(text)} characters: {text[:60]!r}", seconds=seconds)
    return Result(name, "right", seconds=seconds)


def timed(text: str, reasoning: bool, ended: bool) -> tuple[float, ParsedReply]:
    """Returns the processor time of reading a reply, the least of several if it is long."""
    least = math.inf
    # A busy machine makes one measurement long, but hardly five.
    for _ in range(5):
        began = time.thread_time()
        parsed = parse_reply(text, reasoning=reasoning, ended=ended)
        least = min(least, time.thread_time() - began)
        if least <= SLOW / 2 or least > 1:
            break
    return least, parsed


def check(text: str, parsed: ParsedReply) -> None:
    """Raises WrongError where a reading cannot be right, whatever the text is."""
    expect(tuple(parsed.scores) == SCORE_NAMES, f"scores {list(parsed.scores)}")
    for name, value in parsed.scores.items():
        if math.isnan(value):
            continue
        expect(0 <= value <= 1, f"{name} = {value}")
        start, end = parsed.spans[name]
        # Without the other scripts' digits, which float() reads and the grammar does not have.
        written = text[start:end]
        expect(written.isascii(), f"{name} read from {written!r}")
        expect(float(written) == value, f"{name} = {value}, but there is {written!r}")
    expect(len(set(parsed.boxes)) == len(parsed.boxes), "a box twice")
    for x1, y1, x2, y2 in parsed.boxes:
        expect(all(map(math.isfinite, (x1, y1, x2, y2))), f"box {(x1, y1, x2, y2)}"[:200])
        expect(x1 < x2 and y1 < y2, f"box without area {(x1, y1, x2, y2)}")


def same(known: Mapping[str, float], scores: Mapping[str, float]) -> None:
    """Raises WrongError where scores differ from those that were written."""
    for name, value in known.items():
        read = scores[name]
        fits = math.isnan(read) if math.isnan(value) else read == value
        expect(fits, f"{name} is {value}, read as {read}")


# -- replies whose values are known ---------------------------------------------------------------

_Known = tuple[str, Mapping[str, float] | None, tuple[tuple[float, ...], ...] | None]


def _number(dice: random.Random) -> str:
    digits = dice.randint(1, 17)
    random_ones = (f"{dice.random():.2f}", f"{dice.random():.{digits}f}", f"{dice.random():.3e}")
    return dice.choice((*random_ones, "1.0", "0", "1", "0.0", ".5", "+0.25"))


def _boxes(dice: random.Random) -> tuple[tuple[float, ...], ...]:
    found = []
    for _ in range(dice.randint(0, 4)):
        x, y = dice.randint(0, 400), dice.randint(0, 400)
        found.append((float(x), float(y), x + dice.randint(1, 99) / 4, y + dice.randint(1, 99) / 4))
    return tuple(dict.fromkeys(found))


def _written(boxes: tuple[tuple[float, ...], ...]) -> str:
    return " and ".join(f"[{','.join(f'{v:g}' for v in box)}]" for box in boxes)


def _reply(
    dice: random.Random, numbers: list[str], boxes: tuple[tuple[float, ...], ...] = ()
) -> str:
    space = dice.choice((" ", "  ", "", "\n", "\t "))
    end = dice.choice((";", "; ", ";\n", "\n", " "))
    fields = list(zip(FIELDS, numbers, strict=True))
    dice.shuffle(fields)
    answer = "".join(f"{name}:{space}{number}{end}" for name, number in fields)
    thoughts = dice.choice(("All is well.", "Misaligned at", "The cat's ear is odd;", ""))
    return f"<think>{thoughts} {_written(boxes)}</think>\n<answer>{answer}</answer>"


def _plain(dice: random.Random) -> _Known:
    numbers, boxes = [_number(dice) for _ in FIELDS], _boxes(dice)
    text = _reply(dice, numbers, boxes)
    if dice.random() < 0.3:
        text = text.upper().replace("THINK>", "think>").replace("ANSWER>", "answer>")
    if dice.random() < 0.3:
        text += dice.choice(("\n", "Aesthetic score: 0.1", "\x00", "<answer></answer>", "ſcore"))
    return text, dict(zip(SCORE_NAMES, map(float, numbers), strict=True)), boxes


def _one_unusable(dice: random.Random) -> _Known:
    numbers = [_number(dice) for _ in FIELDS]
    known = dict(zip(SCORE_NAMES, map(float, numbers), strict=True))
    place = dice.randrange(4)
    numbers[place] = dice.choice(_UNUSABLE)
    return _reply(dice, numbers), known | {SCORE_NAMES[place]: math.nan}, ()


def _one_missing(dice: random.Random) -> _Known:
    numbers = [_number(dice) for _ in FIELDS]
    known = dict(zip(SCORE_NAMES, map(float, numbers), strict=True))
    place = dice.randrange(4)
    text = _reply(dice, numbers).replace(f"{FIELDS[place]}:", "Remark:")
    return text, known | {SCORE_NAMES[place]: math.nan}, ()


def _one_twice(dice: random.Random) -> _Known:
    numbers = [f"{dice.random():.3f}" for _ in FIELDS]
    known = dict(zip(SCORE_NAMES, map(float, numbers), strict=True))
    place, other = dice.randrange(4), f"{dice.random():.3f}"
    text = _reply(dice, numbers).replace("</answer>", f" {FIELDS[place]}: {other}</answer>")
    if other != numbers[place]:
        known[SCORE_NAMES[place]] = math.nan
    return text, known, ()


# -- replies of which only little is known --------------------------------------------------------


def _mutilated(dice: random.Random) -> _Known:
    text = list(_plain(dice)[0])
    for _ in range(dice.randint(1, 8)):
        place = dice.randrange(len(text) + 1)
        action = dice.randrange(5)
        if action == 0:
            text[place:place] = dice.choice(_WORDS)
        elif action == 1:
            text[place:place] = dice.choice(_ODD) * dice.choice((1, 1, 9))
        elif action == 2:
            del text[place : place + dice.choice((1, 3, 40))]
        elif action == 3:
            start = dice.randrange(len(text) + 1)
            text[place:place] = text[start : start + 60]
        elif text:
            text[place % len(text)] = dice.choice(_ODD + "0123456789.,;:[]<>/ aeSs")
    return "".join(text), None, None


def _salad(dice: random.Random) -> _Known:
    return "".join(dice.choices((*_WORDS, *_ODD), k=dice.randint(0, 60))), None, None


def _folded(dice: random.Random) -> _Known:
    """Letters that match others without regard to case."""
    numbers = [_number(dice) for _ in FIELDS]
    text, folds = _reply(dice, numbers), {"s": "ſ", "S": "ſ", "i": "ı", "I": "İ", "k": "K"}
    return "".join(folds.get(c, c) if dice.random() < 0.3 else c for c in text), None, None


def _endless(dice: random.Random) -> _Known:
    """Runs that make a parser that tries again and again slow."""
    length = dice.choice((60, 300, 2_000, LONGEST))
    digits = "7" * (length // 8)
    runs = (
        lambda: f"[{digits},{digits},{digits},{digits}",
        lambda: f"[{digits},{digits},{digits},{digits} x]",
        lambda: "[" + " " * length,
        lambda: "[1," * (length // 3),
        lambda: "[1 , 2 , 3 " * (length // 11),
        lambda: "[" * length,
        lambda: f"[{'1.' * (length // 2)}",
        lambda: "<answer>" * (length // 8),
        lambda: "</think>" * (length // 8) + "<think>",
        lambda: "semantic" + " " * length,
        lambda: ("semantic" + " " * 50) * (length // 58),
        lambda: "overall \n" * (length // 9),
        lambda: "aesthetic score" + " " * length,
        lambda: ("aesthetic score :" + " " * 30) * (length // 47),
        lambda: "Aesthetic score:" + "9" * length,
        lambda: "Aesthetic score: 0." + "9" * length,
        lambda: "Aesthetic score: 0.5" + " " * length,
        lambda: "Aesthetic score:" * (length // 16),
        lambda: "Aesthetic score: 1e" + "9" * length,
        lambda: dice.choice(_ODD) * length,
        lambda: "a" * length,
        lambda: " " * length,
        lambda: "\n" * length,
        lambda: "[1,2,3,4]" * (length // 9),
        lambda: "".join(f"[{i},0,{i + 1},9]" for i in range(length // 12)),
    )
    text = dice.choice(runs)()
    if dice.random() < 0.5:
        text = f"<think>{text}</think><answer>{text}"
    return text, None, None


_KINDS: Mapping[str, tuple[float, Callable[[random.Random], _Known]]] = {
    "written": (20, _plain),
    "one field unusable": (15, _one_unusable),
    "one field missing": (5, _one_missing),
    "one field twice": (5, _one_twice),
    "mutilated": (30, _mutilated),
    "words in any order": (15, _salad),
    "letters of other scripts": (9, _folded),
    "long runs": (1, _endless),
}
"""Kind -> how often, and what writes it."""
